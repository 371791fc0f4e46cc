"""The tutor shows what is there: derivation, code, and a live check that can fail."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from minijepa import ops
from minijepa.explain import function_of, helpers_of, input_names, main
from minijepa.gradcheck.cases import CASES
from minijepa.ops.matmul import Linear
from minijepa.ops.rows import Rows, add_rows
from minijepa.ops.softmax import Softmax, exp_rows


def explained(capsys, op):
    status = main([op])
    captured = capsys.readouterr()
    assert captured.err == ""
    return status, captured.out


@pytest.mark.parametrize("op", CASES)
def test_every_operation_is_explained(op, capsys):
    status, out = explained(capsys, op)
    function = function_of(op)
    assert status == 0
    assert out.startswith(f"ops.{op}(")
    assert inspect.getdoc(function) in out
    assert f"{function.__name__}: {function.shapes}" in out
    for line in inspect.getsource(function.backward).splitlines():
        assert line.strip() in out
    assert out.splitlines()[-1].endswith("passed")
    assert max(map(len, out.splitlines())) <= 124


@pytest.mark.parametrize("op", CASES)
def test_every_input_has_a_table_of_its_gradient(op, capsys):
    check = explained(capsys, op)[1].partition("Live check: ")[2]
    names = input_names(op)
    assert len(names) >= len(CASES[op][0].arrays)
    for name, array in zip(names, CASES[op][0].arrays):
        assert f"\n{name} {array.shape} = " in check
        rows = [line for line in check.splitlines() if line.startswith(f"d{name}[")]
        assert len(rows) == min(array.size, 12)
        for row in rows:
            analytic, numeric, difference = map(float, row.split()[-3:])
            assert abs(analytic - numeric) < 1e-8
            assert abs(difference) < 1e-8


def test_the_function_is_the_one_that_the_operation_records():
    assert function_of("softmax") is Softmax
    assert function_of("linear") is Linear
    assert function_of("rows") is Rows
    assert input_names("linear") == ["x", "w", "b"]
    assert input_names("concat") == ["x0", "x1"]


def test_the_code_includes_what_it_calls(capsys):
    assert helpers_of(Softmax) == [exp_rows]
    assert "def _sequences(rows, start, count, length):" in explained(capsys, "attention")[1]
    assert inspect.getsource(add_rows) in explained(capsys, "rows")[1]


def test_the_list(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == sorted(set(ops.__all__) - {"Packing", "RowIndex"})
    softmax = next(line for line in lines if line.startswith("softmax"))
    assert "(..., n) -> (..., n)" in softmax
    assert "e^x / Σ e^x" in softmax
    assert max(map(len, lines)) <= 110


def test_a_wrong_backward_is_shown_and_fails(monkeypatch, capsys):
    def backward(ctx, dy):
        (y,) = ctx.saved
        return (y * dy,)  # without the subtraction

    monkeypatch.setattr(Softmax, "backward", staticmethod(backward))
    status, out = explained(capsys, "softmax")
    assert status == 1
    assert "# without the subtraction" in out
    assert "the gradient of input 0 is wrong" in out
    assert out.splitlines()[-1].endswith("FAILED")


def test_a_backward_of_the_wrong_shape_is_named(monkeypatch, capsys):
    monkeypatch.setattr(Softmax, "backward", staticmethod(lambda ctx, dy: (dy[..., :1],)))
    status, out = explained(capsys, "softmax")
    assert status == 1
    assert "softmax: backward returned shape (2, 1)" in out
    assert out.splitlines()[-1] == "FAILED"


def test_an_unknown_operation_gives_status_2_and_one_line(capsys):
    assert main(["sofmax"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["explain: unknown operation 'sofmax': did you mean softmax or max?"]


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "derivation" in capsys.readouterr().out


def test_as_a_module():
    command = [sys.executable, "-W", "error", "-m", "minijepa.explain", "layer_norm"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=root, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].endswith("passed")
