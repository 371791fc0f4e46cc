"""The exercises: stubs, a judge that is never wrong and says what is missing, hints one at a time, kept progress."""

import inspect
import json
import math
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from tiny import command, differentiate, refusal

from minijepa import Tensor, backend, ops
from minijepa.exercise.__main__ import main
from minijepa.exercise.desk import Desk
from minijepa.exercise.diagnosis import same
from minijepa.exercise.judge import judge
from minijepa.exercise.lessons import LESSONS
from minijepa.explain.operation import function_of

MISTAKES = [(name, mistake) for name, lesson in LESSONS.items() for mistake in lesson.mistakes]

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")

each_lesson = pytest.mark.parametrize("name", LESSONS)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def attempt(name, backward, change=("", "")):
    """Write a student's file: the stub with another backward, given as its source or its body, and another change."""
    lesson = LESSONS[name]
    head, _, _ = lesson.stub().partition("    @staticmethod\n    def backward")
    if not backward.lstrip().startswith("@staticmethod"):
        backward = "@staticmethod\ndef backward(ctx, dy):\n" + textwrap.indent(textwrap.dedent(backward), "    ")
    text = head + textwrap.indent(backward, "    ")
    assert change[0] in text
    Path(lesson.file).write_text(text.replace(*change) if change[0] else text, encoding="utf-8")


def words(text):
    return " ".join(text.split())


def run(capsys, *arguments):
    """(status, output) of the command line; nothing may go to stderr."""
    status, out, err = command(capsys, main, *arguments)
    assert err == ""
    return status, out


# ------------------------------------------------------------------------------------------------------- the lessons


@each_lesson
def test_a_stub_lacks_its_backward(name, capsys):
    lesson = LESSONS[name]
    assert run(capsys, name)[0] == 0
    stub = Path(lesson.file).read_text(encoding="utf-8")
    assert inspect.getsource(lesson.op.forward) in stub
    assert max(map(len, stub.splitlines())) <= 120
    status, out = run(capsys, name)
    assert status == 1
    assert "backward is still empty" in out and "line" in out


@each_lesson
def test_a_lesson_is_complete(name):
    lesson = LESSONS[name]
    assert (ROOT / lesson.page).exists()
    assert 3 <= len(lesson.hints) <= 6 and len(lesson.mistakes) >= 5
    desk = Desk(lesson)
    assert len(desk.cases) >= 8
    entry = desk.entry(lesson.op, desk.cases[0])
    assert len(entry.inputs) == len(desk.cases[0].arrays) == len(lesson.gradients)


THE_SAME = {  # as a composition of the package's operations
    "linear": ops.linear,
    "broadcasting": ops.mul,
    "rows": lambda x: ops.rows(x, np.array([1, 1, 3, 1, 0])),
    "residual": lambda x, w1, w2: x + ops.linear(ops.tanh(ops.linear(x, w1)), w2),
    "gelu": ops.gelu,
    "softmax": ops.softmax,
    "cross_entropy": lambda x: ops.cross_entropy(x, np.array([2, 0])),
    "layer_norm": ops.layer_norm,
    "rms_norm": lambda x, w: w * x / ((x * x).mean(axis=-1, keepdims=True) + 1e-6).sqrt(),
    "attention": lambda q, k, v: ops.softmax(q @ k.T / math.sqrt(q.shape[1])) @ v,
}


@each_lesson
def test_a_lesson_computes_what_the_package_computes(name):
    desk = Desk(LESSONS[name])
    case = desk.cases[0]
    entry, slots = desk.entry(desk.lesson.op, case), desk.slots(desk.lesson.op, case)
    tensors = [Tensor(a, requires_grad=True) for a in case.arrays]
    y = differentiate(lambda: THE_SAME[name](*tensors), lambda y: backend.rng(0, "gradcheck").standard_normal(y.shape))
    assert same(y.data, entry.output.data)
    assert len(slots) == len(tensors)
    assert all(same(slot, tensor.grad) for slot, tensor in zip(slots, tensors))


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=lambda value: value if isinstance(value, str) else value[1])
def test_a_typical_mistake_is_named(name, mistake, capsys):
    attempt(name, LESSONS[name].backward_source(mistake))
    status, out = run(capsys, name)
    assert status == 1
    assert words(LESSONS[name].mistakes[mistake]) in words(out)
    assert "--hint" in out


RIGHT = "(y,) = ctx.saved\ndx = y * (dy - (dy * y).sum(-1, keepdims=True))\n"

# Attempts that are none of a lesson's own mistakes: (exercise, backward, what the answer must say)
ATTEMPTS = {
    "two terms": (
        "layer_norm",
        """
        xhat, r, w = ctx.saved
        dx = r * (w * dy) - r * xhat * np.mean(w * dy * xhat, -1, keepdims=True)
        return dx / r, dy * xhat, dy
        """,
        ["dx  not yet", "dw  right", "mean(g), is missing", "And:", "the factor r in front is missing"],
    ),
    "the sum over the copies": (
        "broadcasting",
        "a, b = ctx.saved\nreturn b * dy, a * dy",
        ["on input 'row to matrix'", "db  not yet", "the sum over the copies is missing: b (3,) was repeated"],
    ),
    "a transposed weight": (
        "linear",
        """
        x, w = ctx.saved
        dx = np.matmul(dy, np.transpose(w))
        return dx, dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1]), dy
        """,
        ["ValueError: matmul", "Which transposes", "x (4, 3), w (2, 3), b (2,), dy (4, 2)",
         "'square weight' it runs, and there dx: w is"],
    ),
    "a transposed gradient": (
        "linear",
        "x, w = ctx.saved\nreturn dy @ w, x.T @ dy, dy.sum(0)",
        ["dx  right", "dw  not yet", "backward returned shape (3, 2) for input 1", "right, but transposed"],
    ),
    "the sign": (
        "softmax",
        "(y,) = ctx.saved\nreturn ((dy * y).sum(-1, keepdims=True) * y - dy * y,)",
        ["the sign is wrong, and nothing else", "a sign is wrong"],
    ),
    "a factor": (
        "gelu",
        "x, s = ctx.saved\nreturn (2 * dy * (s + x * 2 * s * (1 - s) * C * (1 + 3 * A * x**2)),)",
        ["everywhere 2 times the right value"],
    ),
    "no dy": (
        "gelu",
        "x, s = ctx.saved\nreturn (s + x * 2 * s * (1 - s) * C * (1 + 3 * A * x**2),)",
        ["dy is missing"],
    ),
    "the wrong slots": (
        "attention",
        """
        q, k, v, p = ctx.saved
        da = p * (dy @ v.T - ((dy @ v.T) * p).sum(axis=1, keepdims=True)) / math.sqrt(q.shape[1])
        return p.T @ dy, da.T @ q, da @ k
        """,
        ["dq  not yet", "dk  right", "dq: this is dv, in dq's place", "dv: this is dq, in dv's place"],
    ),
    "zeros": ("softmax", "(y,) = ctx.saved\nreturn (np.zeros_like(y),)", ["all zeros", "backward returns zeros"]),
    "nan": ("softmax", "(y,) = ctx.saved\nreturn (y * np.nan,)", ["it contains nan or infinity"]),
    "half of it": (
        "rms_norm",
        "xhat, r, w = ctx.saved\nreturn None, (dy * xhat).reshape(-1, len(w)).sum(0)",
        ["dx  not yet", "dw  right", "dx: still None"],
    ),
    "no keepdims, and rows that are axis 0": (
        "layer_norm",
        """
        xhat, r, w = ctx.saved
        g = w * dy
        return r * (g - g.mean(-1) - xhat * (g * xhat).mean(-1)), (dy * xhat).sum(axis=0), dy.sum(axis=0)
        """,
        ["ValueError: operands could not be broadcast together with shapes (2,3) (2,)",
         "keepdims=True keeps it, with length 1. On input 'one row (5,)' it runs, and there dw: axis 0 was summed"],
    ),
    "rows that are axis 0": (
        "layer_norm",
        LESSONS["layer_norm"].backward_source().replace(".reshape(-1, len(w))", ""),
        ["on input 'one row (5,)'", "dx  right", "db: axis 0 was summed", "a single row here, without an axis for rows",
         "(Right on 1 input before this one.)"],
    ),
    "matrices only": (
        "linear",
        "x, w = ctx.saved\nreturn dy @ w, dy.T @ x, dy",
        ["(on input 'three axes': x (2, 3, 4)", "(Right on 4 inputs before this one.)", "There are more axes here"],
    ),
    "another axis": (
        "softmax",
        "(y,) = ctx.saved\nreturn (y * (dy - (dy * y).sum(axis=1, keepdims=True)),)",
        ["AxisError: axis 1 is out of bounds", "(on input 'one row (5,)': x (5,), dy (5,))", "a single row here"],
    ),
    "float64": (
        "rows",
        "dx = np.zeros(ctx.shape)\nnp.add.at(dx, ctx.index, dy)\nreturn (dx,)",
        ["The numbers are right, but float32 must stay float32", "np.zeros(shape, dy.dtype)"],
    ),
    "no dy, a scalar": (
        "cross_entropy",
        LESSONS["cross_entropy"].backward_source().replace("dy", "1.0").replace("ctx, 1.0", "ctx, dy"),
        ["dy is missing"],
    ),
    "everything summed": (
        "broadcasting",
        """
        def back(g, x):
            while g.ndim > x.ndim:
                g = g.sum(0)
            return g if g.shape == x.shape else g.sum()
        a, b = ctx.saved
        return back(dy * b, a), back(dy * a, b)
        """,
        ["on input 'column to matrix'", "everything was summed, but b has shape (3, 1)"],
    ),
    "kept dimensions": (
        "linear",
        "x, w = ctx.saved\nreturn dy @ w, dy.T @ x, dy.sum(0, keepdims=True)",
        ["the right numbers, but of shape (1, 2): b has (2,). No keepdims, or reshape."],
    ),
    "the output is overwritten": (
        "softmax",
        "(y,) = ctx.saved\ny *= dy - (dy * y).sum(-1, keepdims=True)\nreturn (y,)",
        ["the numbers are right here: the report above says what is wrong"],
    ),
    "lists": (
        "broadcasting",
        LESSONS["broadcasting"].backward_source().replace("return da, db", "return da.tolist(), db.tolist()"),
        ["the numbers are right here"],
    ),
    "no array": ("softmax", RIGHT + "return ('dx',)", ["dx: this is not an array of numbers"]),
    "a column": (
        "softmax",
        RIGHT + "return (dx[..., :1],)",
        ["backward returned shape (2, 1) for input 0, whose shape is (2, 3)"],
    ),
    "something of its own": ("softmax", "(y,) = ctx.saved\nreturn (dy * y**3,)", ["none of the usual mistakes"]),
    "state beside ctx": (
        "residual",
        """
        x, a, w1, w2 = ctx.saved
        Residual.x = getattr(Residual, "x", x) if x.shape == (2, 3) else x
        dh = dy @ w2 * (1 - a * a)
        rows = lambda z: z.reshape(-1, z.shape[-1])
        return dy + dh @ w1, rows(dh).T @ rows(Residual.x if x.shape == (2, 3) else x), rows(dy).T @ rows(a)
        """,
        ["on input 'two blocks'", "input 1  not yet", "where a value is used more than once"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("attempted", ATTEMPTS)
def test_an_answer_says_what_an_attempt_lacks(attempted, capsys):
    name, backward, told = ATTEMPTS[attempted]
    attempt(name, backward)
    status, out = run(capsys, name)
    assert status == 1
    for words_ in told:
        assert words(words_) in words(out)
    assert f"python -m minijepa.exercise {name} --hint" in out
    assert "Traceback" not in out


@pytest.mark.parametrize(("backward", "told"), [("dw, db", False), ("dy * xhat, db", True), ("dy * xhat, dy", True)])
def test_a_sum_left_to_the_engine_is_mentioned(backward, told, capsys):
    """The engine sums gradients of broadcast inputs, so the attempt is right; but the learner should know of it."""
    source = LESSONS["layer_norm"].backward_source()
    attempt("layer_norm", source.replace("return dx, dw, db", f"return dx, {backward}"))
    status, out = run(capsys, "layer_norm")
    assert (status, out[:6]) == (0, "Right:")
    assert ("the sum over the rows was left to the engine" in words(out)) == told
    assert (f"{'dw, db' if backward.endswith('dy') else 'dw'}: the sum" in out) == told


TUPLE = "backward must return a tuple with a slot for each input, (dx,), and returned"
WRITES = "this writes to dy, to an array that forward was given, or to a view that NumPy protects"


@pytest.mark.parametrize(
    ("wrong", "line", "told"),
    [
        ("return (ctx.saved[0] * dy", "return (", "not Python: '(' was never closed"),
        ("y = 1\n  return dy", "  return dy", "not Python: unexpected indent"),
        ("y = 1\nreturn (z * dy,)", "z * dy", "NameError: name 'z' is not defined"),
        ("y, x = ctx.saved\nreturn (dy,)", "y, x", "ValueError: not enough values to unpack"),
        ("y = 1\nreturn (1 / 0,)", "1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('tired')", "sys.exit", "SystemExit: tired"),
        ("dy *= 2\nreturn (dy,)", "dy *= 2", WRITES),
        ("dx = dy[:1]\ndx += 2\nreturn (dy,)", "dx += 2", WRITES),
        ("s = np.broadcast_to(dy, dy.shape)\ns -= 1\nreturn (s,)", "s -= 1", WRITES),
        (RIGHT + "return dx", "return dx", f"{TUPLE} ndarray"),
        (RIGHT + "return dx, dy", "return dx", f"{TUPLE} a tuple of 2"),
        (RIGHT + "return [dx]", "return [dx]", f"{TUPLE} list"),
        (RIGHT + "return None", "return None", f"{TUPLE} None"),
        (RIGHT, "def backward", f"{TUPLE} None"),
        (RIGHT + "return (None,)", "return (None,)", "backward is still empty: dx is None"),
        # a change elsewhere in the file: (old, new)
        (("y = e / e.sum", "y = 2 * e / e.sum"), "return y", "forward was changed and gives another y"),
        (("import numpy as np", "import numpyy as np"), "numpyy", "ModuleNotFoundError: No module named 'numpyy'"),
        (("e = np.exp(x - ", "x -= 1; e = np.exp(x - "), "x -= 1", WRITES),
        (('"(..., n) -> (..., n)"', '"(..., n)"'), "class Softmax", 'the signature "(..., n)" can\'t be read'),
        (("ctx.save(y)", ""), "ctx.saved", "ValueError: not enough values to unpack"),
        (("class Softmax(", "class SoftMax("), None, "it has no class Softmax(Function)"),
        (("(Function)", ""), None, "it has no class Softmax(Function)"),
        (("def backward(ctx, dy)", "def backward(dy)"), None, "backward takes (ctx, dy): restore its first line"),
        (("def forward(ctx, x)", "def forward(self, ctx, x)"), None, "forward takes (ctx, x): restore its first line"),
    ],
)
def test_an_error_in_the_file_is_one_line_with_its_line_number(wrong, line, told, capsys):
    """Without one, if the class or a method's first line is not what it should be."""
    backward, change = (wrong, ("", "")) if isinstance(wrong, str) else (RIGHT + "return (dx,)", wrong)
    attempt("softmax", backward, change)
    status, out = run(capsys, "softmax")
    place = f", line {number_of(line)}" if line else ""
    assert status == 1
    assert out.startswith(f"exercise_softmax.py{place}: {told}")
    assert "minijepa/" not in out and "Traceback" not in out


def number_of(text):
    """The number of the last line in the student's file that has this text."""
    return max(i for i, line in enumerate(Path("exercise_softmax.py").read_text().splitlines(), 1) if text in line)


def test_a_value_kept_outside_of_ctx_is_noticed(capsys):
    keep = ("ctx.save(y)", "Softmax.kept = y; ctx.save(y)")
    attempt("softmax", RIGHT.replace("ctx.saved", "(Softmax.kept,)") + "return (dx,)", change=keep)
    status, out = run(capsys, "softmax")
    assert status == 1 and "is something kept outside of ctx?" in words(out)


def test_prints_are_those_of_the_reported_input_and_of_the_file(capsys):
    backward = "x, w = ctx.saved\ndx = dy @ w.T\nprint('after')\nreturn dx, dy.T @ x, dy.sum(0)"
    attempt("linear", backward, change=("import numpy as np", "import numpy as np\nprint('read')"))
    out = run(capsys, "linear")[1]
    assert "prints: read" in out and "prints: after" not in out


def test_a_file_that_is_not_text(capsys):
    Path("exercise_softmax.py").write_bytes(b"\xff\xfe\x00")
    status, out = run(capsys, "softmax")
    assert (status, out.splitlines()[0].split(": ")[:2]) == (1, ["exercise_softmax.py", "not Python"])


def test_prints_are_shown_once_with_their_line(capsys):
    attempt("softmax", RIGHT + "print('dx is', dx.shape)\nprint(1, 2, sep='-')\nreturn (y * dy,)")
    status, out = run(capsys, "softmax")
    assert status == 1
    first, second = number_of("'dx is'"), number_of("sep=")
    assert out.splitlines()[0] == f"exercise_softmax.py, line {first}, prints: dx is (2, 3)"
    assert out.splitlines()[1] == f"exercise_softmax.py, line {second}, prints: 1-2"
    assert out.count("prints") == 2


def test_the_judge_does_not_hide_its_own_faults(monkeypatch):
    attempt("softmax", RIGHT + "return (dx,)")
    monkeypatch.setattr(Desk, "compare", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        judge(LESSONS["softmax"], Path("exercise_softmax.py"))


# ---------------------------------------------------------------------------------------- stubs, hints and progress


def test_what_a_student_wrote_is_never_overwritten(capsys):
    Path("exercise_rows.py").write_text("# mine\n")
    for arguments in (["rows"], ["rows", "--hint"], ["rows", "--solution"], []):
        run(capsys, *arguments)
        assert Path("exercise_rows.py").read_text() == "# mine\n"


def test_hints_come_one_at_a_time_and_are_remembered(capsys):
    hints = LESSONS["layer_norm"].hints
    for count in [*range(1, len(hints) + 1), len(hints)]:
        status, out = run(capsys, "layer_norm", "--hint")
        assert status == 0
        assert [words(hint) in words(out) for hint in hints] == [True] * count + [False] * (len(hints) - count)
        assert f"Hint {count} of {len(hints)}" in out
    assert "--solution" in out
    assert json.loads(Path("exercise_progress.json").read_text())["layer_norm"]["hints"] == len(hints)


@each_lesson
def test_a_solution_is_the_way_and_the_code(name, capsys):
    lesson = LESSONS[name]
    status, out = run(capsys, name, "--solution")
    assert status == 0
    assert all(words(hint) in words(out) for hint in lesson.hints)
    assert lesson.backward_source() in out
    assert lesson.page in out
    assert (lesson.twin is None) == (name in ("residual", "rms_norm"))
    if lesson.twin:
        assert textwrap.dedent(inspect.getsource(function_of(lesson.twin).backward)) in out
        assert function_of(lesson.twin).__module__.startswith("minijepa.ops.")


def test_progress_is_kept_and_shown(capsys):
    assert "0 of 10 solved. Next: python -m minijepa.exercise linear" in run(capsys)[1]
    run(capsys, "softmax")
    run(capsys, "softmax")
    run(capsys, "softmax", "--hint")
    attempt("softmax", RIGHT + "return (dx,)")
    assert run(capsys, "softmax")[0] == 0
    out = run(capsys)[1]
    rows = {line.split()[1]: line.split()[-3:] for line in out.splitlines()[1:11]}
    assert [*rows] == [*LESSONS]
    assert rows["softmax"] == ["solved", "2", "1"] and rows["linear"][-1] == "-"
    assert "1 of 10 solved" in out
    assert max(map(len, out.splitlines())) <= 80
    for name, lesson in LESSONS.items():
        attempt(name, lesson.backward_source())
        status, out = run(capsys, name)
        assert (status, out[:6]) == (0, "Right:"), name
    assert "10 of 10 solved. That was the last one" in out
    assert "10 of 10 solved" in run(capsys)[1]


@pytest.mark.parametrize("text", ["", "{", '{"rows": 3}', '{"rows": {"hints": "x"}}', '{"rows": {"attempts": 1e999}}'])
def test_a_damaged_progress_file_is_named(text, capsys):
    Path("exercise_progress.json").write_text(text)
    assert "exercise_progress.json is damaged: delete it" in refusal(capsys, main, "rows")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["layernorm"], "unknown exercise 'layernorm': did you mean layer_norm"),
        (["zzz"], "unknown exercise 'zzz': there are linear, broadcasting"),
        (["--hint"], "name the exercise: python -m minijepa.exercise OP --hint"),
        (["--solution"], "name the exercise: python -m minijepa.exercise OP --solution"),
    ],
)
def test_bad_usage_gives_status_2_and_one_line(arguments, told, capsys):
    assert told in refusal(capsys, main, *arguments)
    assert command(capsys, main, "rows", "--hint", "--solution")[0] == 2
    assert not list(Path().iterdir())


def test_a_folder_in_the_files_place(capsys):
    Path("exercise_rows.py").mkdir()
    assert refusal(capsys, main, "rows") == "exercise: exercise_rows.py: Is a directory\n"


def test_the_page_shows_what_happens(capsys):
    text = (ROOT / "docs/exercises.md").read_text(encoding="utf-8")
    kinds = []
    for match in re.finditer(r"(?:<!-- attempt: (\w+) -->\n)?^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        name, language, block = match.groups()
        kinds.append(name or language)
        if name:
            attempt(name, textwrap.dedent(block))
        elif language == "python":
            assert block in LESSONS["softmax"].stub()
        else:
            command, _, shown = block.partition("\n")
            assert command.startswith("$ python -m minijepa.exercise")
            out = run(capsys, *command.split()[4:])[1]
            assert NUMBER.sub("#", shown) == NUMBER.sub("#", out)
            assert np.allclose(*(np.array(NUMBER.findall(t), float) for t in (shown, out)), rtol=1e-3, atol=1e-6)
    assert kinds == ["text", "text", "python", "softmax", "text", "text", "softmax", "text"]
