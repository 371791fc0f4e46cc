"""The tutor shows what is there: derivation, code, and a live check that can fail."""

import ast
import inspect
import os
import re
import shutil

import pytest
from conftest import ROOT, python
from tiny import command, refusal

from minijepa import ops
from minijepa.explain.__main__ import main
from minijepa.explain.columns import fit_code
from minijepa.explain.operation import PAGES, function_of, helpers_of, input_names, page_of, source_of
from minijepa.gradcheck.cases import CASES
from minijepa.ops.matmul import Linear
from minijepa.ops.softmax import Softmax, exp_rows


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """One as wide as the source, so that what is shown is the source."""
    monkeypatch.setenv("COLUMNS", "120")


def explained(capsys, op):
    status, out, err = command(capsys, main, op)
    assert err == ""
    return status, out


@pytest.mark.parametrize("op", CASES)
def test_every_operation_is_explained_and_every_input_has_a_table_of_its_gradient(op, capsys):
    status, out = explained(capsys, op)
    function, names = function_of(op), input_names(function_of(op), len(CASES[op][0].arrays))
    assert status == 0
    assert out.startswith(f"ops.{op}(")
    assert inspect.getdoc(function) in out
    assert f"{function.__name__}: {function.shapes}" in out
    for line in inspect.getsource(function.backward).splitlines():
        assert line.strip() in out
    assert f"Read on: docs/backward/{page_of(op)}.md" in out
    assert out.splitlines()[-1].endswith("passed")
    assert max(map(len, out.splitlines())) <= 120
    check = out.partition("Live check: ")[2]
    assert len(names) >= len(CASES[op][0].arrays)
    for name, array in zip(names, CASES[op][0].arrays):
        assert f"\n{name} {array.shape} = " in check
        rows = [line for line in check.splitlines() if line.startswith(f"d{name}[")]
        assert len(rows) == min(array.size, 12)
        for row in rows:
            analytic, numeric, difference = map(float, row.split()[-3:])
            assert abs(analytic - numeric) < 1e-8
            assert abs(difference) < 1e-8


def test_every_operation_has_one_page_to_read_on():
    assert sorted(" ".join(PAGES.values()).split()) == sorted(CASES)
    for page in PAGES:
        assert (ROOT / "docs" / "backward" / f"{page}.md").exists()


def test_the_code_includes_what_it_calls_and_nothing_else(capsys):
    assert helpers_of(Softmax) == [exp_rows] and [helper.__name__ for helper in helpers_of(Linear)] == ["_rows"]
    assert helpers_of(function_of("max")) == []  # it calls x.max, and there is a function of that name
    assert "def _sequences(rows, start, count, length):" in explained(capsys, "attention")[1]


@pytest.mark.parametrize("op", CASES)
def test_it_fits_into_80_columns_and_says_the_same(op, monkeypatch, capsys):
    wide = explained(capsys, op)[1]
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(shutil, "get_terminal_size", lambda fallback=(80, 24): os.terminal_size(fallback))
    narrow = explained(capsys, op)[1]
    for line in narrow.splitlines():  # a string in the code can't be broken
        assert len(line) <= 80 or ('"' in line and '"""' not in line and "  # " not in line)
    function = function_of(op)
    for piece in (function.forward, function.backward, *helpers_of(function)):
        ast.parse(fit_code(source_of(piece), 80))

    def words(text):  # comments move, rules under headings have another length
        return sorted(re.sub(r"-{5,}|#", "", text).replace("[", "").replace("]", "").split())

    assert words(narrow) == words(wide)


def test_the_list(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-6]] == sorted(set(ops.__all__) - {"Packing", "RowIndex"})
    softmax = next(line for line in lines if line.startswith("softmax"))
    assert "exp(x) / Σ exp(x)" in softmax
    assert max(map(len, lines)) <= 120


def test_a_wrong_backward_is_shown_and_fails(monkeypatch, capsys):
    def backward(ctx, dy):
        (y,) = ctx.saved
        return (y * dy,)  # without the subtraction

    monkeypatch.setattr(Softmax, "backward", staticmethod(backward))
    status, out = explained(capsys, "softmax")
    assert status == 1 and "# without the subtraction" in out and "the gradient of input 0 is wrong" in out
    assert out.splitlines()[-1].endswith("FAILED")
    monkeypatch.setattr(Softmax, "backward", staticmethod(lambda ctx, dy: (dy[..., :1],)))
    status, out = explained(capsys, "softmax")
    assert status == 1 and "softmax: backward returned shape (2, 1)" in out and out.splitlines()[-1] == "FAILED"


# --------------------------------------------------------------------------------------------------------------- a step


def test_a_step_is_shown_in_order_and_fits_a_terminal(capsys):
    status, out = explained(capsys, "--step")
    assert status == 0
    titles = [line for line in out.splitlines() if line[:2] in ("1.", "2.", "3.", "4.", "5.")]
    assert [title[0] for title in titles] == list("12345")
    assert max(map(len, out.splitlines())) <= 80
    assert explained(capsys, "--step") == (status, out)


def test_bad_usage_is_status_2_and_help_tells_what_is_shown(capsys):
    assert refusal(capsys, main, "sofmax") == "explain: unknown operation 'sofmax': did you mean softmax or max?\n"
    assert command(capsys, main, "softmax", "--step")[0] == 2  # an operation and a step are two questions
    status, out, _ = command(capsys, main, "--help")
    assert status == 0 and "derivation" in out


def test_without_docstrings_each_command_works_or_is_one_line(tmp_path):
    """python -OO leaves them out."""
    code = """if True:
        from minijepa.exercise.__main__ import main as exercise
        from minijepa.explain.__main__ import main as explain
        refused = [explain([]), explain(["gelu"]), explain(["gelu", "--html", "page.html"])]
        refused.append(exercise(["gelu", "--solution"]))
        print(refused, [explain(["--step"]), exercise([]), exercise(["gelu", "--hint"])])
    """
    done = python("-OO", "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and done.stdout.endswith("[2, 2, 2, 2] [0, 0, 0]\n")
    words = "python -OO removes the docstrings that this command shows: run it without -OO\n"
    assert done.stderr == 3 * f"explain: {words}" + f"exercise: {words}"
