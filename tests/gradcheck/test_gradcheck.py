"""The oracle: it passes every operation, and it fails every wrong backward that somebody is likely to write."""

from unittest.mock import Mock

import numpy as np
import pytest
from conftest import python
from tiny import command, differentiate, normal_like, operation, refusal

from minijepa import ops
from minijepa.autograd import Tape, Tensor
from minijepa.backend import rng
from minijepa.errors import ConfigError, GradcheckError
from minijepa.gradcheck import compare_gradients, gradcheck, gradient_error, numeric_gradient
from minijepa.gradcheck.__main__ import main
from minijepa.gradcheck.cases import CASES, cases_of
from minijepa.ops.elementwise import Exp, Neg, Power
from minijepa.ops.layer_norm import LayerNorm
from minijepa.ops.losses import CrossEntropy
from minijepa.ops.matmul import Linear, Matmul
from minijepa.ops.shaping import Slice
from minijepa.ops.softmax import Softmax

ALL = [pytest.param(case, id=f"{op}: {case.name}") for op, cases in CASES.items() for case in cases]


def normal(*shape):
    return rng(0, "test_gradcheck", sum(shape)).standard_normal(shape)


# ------------------------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("case", ALL)
def test_every_case_passes(case):
    assert gradcheck(case.fn, *case.arrays) < 1e-8


def test_cases_have_names_of_their_own():
    assert len({case.id for case in ALL}) == len(ALL)


@pytest.mark.parametrize("op", CASES)
def test_the_first_case_calls_the_operation_alone(op):
    """It serves as the example that ``minijepa.explain`` shows."""
    case = CASES[op][0]
    with Tape() as tape:
        case.fn(*(Tensor(a, requires_grad=True) for a in case.arrays))
    assert len(tape.entries) == 1 and sum(a.size for a in case.arrays) <= 20


# What arrives at an operation as dy is often a view: transposed, with negative strides, or (after a sum) a broadcast
# array that is read-only and whose elements share one place in memory.
DY_VIEWS = {
    "transposed": lambda y: y.T * 1.5,
    "turned round": lambda y: y.T[::-1] if y.ndim else y,
    "broadcast": lambda y: y.sum(),
    "repeated": lambda y: y.expand(2, *y.shape),
}


@pytest.mark.parametrize("view", DY_VIEWS)
@pytest.mark.parametrize("op", CASES)
def test_a_gradient_that_is_a_view(op, view):
    for case in CASES[op][:3]:
        assert gradcheck(lambda *x, fn=case.fn: DY_VIEWS[view](fn(*x)), *case.arrays) < 1e-8


def test_a_bias_on_the_keys_has_gradient_zero():
    """Softmax does not see it: it adds the same to a whole row of scores. A relative error would mean nothing."""

    def fn(bias, qkv):
        zeros = np.zeros(2)
        return ops.attention(qkv + ops.concat([Tensor(zeros), bias, Tensor(zeros)]), [4], 1)

    bias, _ = compare_gradients(fn, normal(2), normal(4, 6))
    assert abs(bias.analytic).max() < 1e-15
    assert bias.error < 1e-8


def test_float32_and_lists_are_converted():
    assert gradcheck(ops.exp, normal(2, 3).astype(np.float32)) < 1e-8
    assert gradcheck(ops.mul, [1, 2, 3], [[1.0], [2.0]]) < 1e-8


def test_inputs_are_used_as_they_lie_in_memory_and_left_alone():
    x = normal(4, 6)[::-1, ::2]
    before, fn = x.copy(), Mock(side_effect=ops.exp)
    gradcheck(fn, x)
    assert fn.call_args_list[0].args[0].data.strides == x.strides
    np.testing.assert_array_equal(x, before)


def test_numeric_gradient_of_a_known_function():
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    before = x.copy()
    np.testing.assert_allclose(numeric_gradient(lambda: float((x**3).sum()), x), 3 * x**2, rtol=1e-10)
    np.testing.assert_allclose(numeric_gradient(lambda: x**2, x, cotangent=x.copy(), entries=[1, 3]), [8.0, 18.0])
    np.testing.assert_array_equal(x, before)


def test_numeric_gradient_of_float32_is_refused():
    x = np.ones(2, np.float32)
    with pytest.raises(GradcheckError, match="^differences of float32 have too few digits: use float64"):
        numeric_gradient(lambda: x.sum(), x)


def test_numeric_gradient_puts_the_element_back_when_the_function_fails():
    x, value = np.ones(2), Mock(side_effect=[1.0, 1.0, 1.0, 1.0, RuntimeError])  # four calls for the first element
    with pytest.raises(RuntimeError):
        numeric_gradient(value, x)
    assert x.tolist() == [1, 1]


# ------------------------------------------------------------------------------------------------------- what is wrong


def mean(x):
    return x.mean(axis=-1, keepdims=True)


def layer_norm_without_eps(ctx, dy):
    """dx is the derivative of (x − μ) / σ: exact but for eps."""
    xhat, r, w = ctx.saved
    g, z = dy * w, xhat / np.sqrt(mean(xhat * xhat))
    return r * (g - mean(g) - z * mean(g * z)), dy * xhat, dy


def slice_of_ones(ctx, dy):
    dx = np.ones(ctx.shape)
    dx[ctx.index] = dy
    return (dx,)


def cross_entropy_of_the_wrong_label(ctx, dy):
    ctx.labels = ctx.labels[::-1]
    return CrossEntropy.backward(ctx, dy)


rows3 = normal(3, 5), normal(5), normal(5)
tiny3 = 1e-2 * normal(3, 5), normal(5), normal(5)
square = normal(3, 3), normal(3, 3)

# (operation, its wrong backward, arrays, options); the pages in docs/backward/ and the exercises have many more, which
# test_pages.py and test_exercise.py try
WRONG = {
    "layer_norm without eps, scale 1e-2": (LayerNorm, layer_norm_without_eps, tiny3, {"eps": 1e-6}),
    "layer_norm without eps, scale 1": (LayerNorm, layer_norm_without_eps, rows3, {"eps": 1e-6}),
    "slice that starts from ones": (Slice, slice_of_ones, (normal(3, 2),), {"index": slice(1, 2)}),
    "matmul with swapped factors": (Matmul, lambda ctx, dy: (dy @ ctx.saved[1].T, dy @ ctx.saved[0].T), square, {}),
    "linear bias that forgets an axis": (
        Linear, lambda ctx, dy: (*Linear.backward(ctx, dy)[:2], dy[0].sum(axis=0)),
        (normal(2, 3, 4), normal(5, 4), normal(5)), {}),
    "cross_entropy of another row's label": (
        CrossEntropy, cross_entropy_of_the_wrong_label, (normal(2, 3),), {"labels": np.array([0, 2])}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wrong_backward_fails(name, seed):
    right, backward, arrays, options = WRONG[name]
    wrong = operation(backward=backward, base=right)
    with pytest.raises(GradcheckError, match="is wrong: error"):
        gradcheck(lambda *x: wrong.apply(*x, **options), *arrays, seed=seed)
    # so it was the backward, not the inputs
    assert gradcheck(lambda *x: right.apply(*x, **options), *arrays, seed=seed) < 1e-8


# ---------------------------------------------------------------------------------------------------------- the report


def off(delta=0.0, factor=1.0):
    """y = 3x, whose backward adds ``delta`` to one element and scales all by ``factor``."""

    def backward(ctx, dy):
        dx = 3 * factor * dy
        dx[1, 2] += delta
        return (dx,)

    return operation(lambda ctx, x: 3 * x, backward, "Off", shapes="(...) -> (...)").apply


def cotangent_of(*shape):
    return rng(0, "gradcheck").standard_normal(shape)


@pytest.mark.parametrize("delta", [1e-1, 1e-4])
def test_the_error_is_accurate(delta):
    analytic = 3 * cotangent_of(2, 3)
    analytic[1, 2] += delta
    (comparison,) = compare_gradients(off(delta), normal(2, 3))
    assert comparison.error == pytest.approx(delta / abs(analytic).max(), rel=1e-6)


def test_the_tolerance_is_the_limit():
    fn = off(factor=1 + 1e-4)
    assert gradcheck(fn, normal(2, 3), tolerance=1.1e-4) == pytest.approx(1e-4, rel=1e-3)
    with pytest.raises(GradcheckError):
        gradcheck(fn, normal(2, 3), tolerance=0.9e-4)


def test_the_report_names_the_input_the_element_and_both_numbers():
    x, wrong = normal(2, 3), off(delta=0.5)
    right = 3 * cotangent_of(2, 3)[1, 2]
    with pytest.raises(GradcheckError) as failure:
        gradcheck(lambda a, b: a.exp().sum() + wrong(b), normal(4), x)
    text = str(failure.value)
    for part in ("input 1 is wrong", "shape (2, 3)", "[1, 2]", f"{x[1, 2]:.6g}", f"{right + 0.5:.6g}", f"{right:.6g}"):
        assert part in text
    assert f"norm {np.linalg.norm(cotangent_of(2, 3)):.3g}" in text
    assert "wrong at   1 of 6 elements" in text
    assert "hint" not in text


@pytest.mark.parametrize(
    ("fn", "x"),
    [
        (lambda x: x * x, 1e7 * normal(2, 3)), (lambda x: x**2, 1e7 + normal(2, 3)), (ops.sqrt, 1e10 + normal(2, 3)),
        (lambda x: x + 1e8, normal(2, 3)), (lambda x: (x + 1e10) - 1e10, normal(2, 3)), (ops.sum, 1e9 * normal(2, 3)),
        (lambda x: ops.l2_loss(x, np.zeros((2, 3))), 1e8 * normal(2, 3)), (lambda x: x @ x.T, 1e9 * normal(2, 3)),
    ],
    ids=["x * x", "x ** 2", "sqrt", "x + 1e8", "x + 1e10 - 1e10", "sum", "l2_loss", "x @ x.T"],
)  # fmt: skip
def test_right_gradients_at_large_numbers_pass(fn, x):
    """The usual step is lost in rounding there; a wider one is not."""
    assert gradcheck(fn, x) < 1e-6
    with pytest.raises(GradcheckError, match=r"input 0 can't be judged: error .*\n(.*\n)*  rounding   may move the "
                       r"numeric gradient by \S+: the step is below the resolution of these numbers"):  # fmt: skip
        gradcheck(fn, 1e3 * x + 1e15, h=1e-3)


def test_a_curved_function_plus_a_large_number_cannot_be_judged():
    """A step wide enough for 1e9 is too wide for exp."""
    with pytest.raises(GradcheckError, match="can't be judged"):
        gradcheck(lambda x: x.exp() + 1e9, normal(2, 3))


def test_wrong_gradients_at_large_numbers_fail():
    twice_too_much = operation(backward=lambda ctx, dy: (4 * ctx.saved[0] * dy,), base=Power)
    for x in (normal(2, 3), 1e7 * normal(2, 3), 1e10 * normal(2, 3)):
        with pytest.raises(GradcheckError, match=r"is wrong: error 5\.0e-01"):
            gradcheck(lambda x: twice_too_much.apply(x, exponent=2), x)


def test_nan_fails():
    with pytest.raises(GradcheckError, match="error inf"):
        gradcheck(off(float("nan")), normal(2, 3))
    assert gradient_error(np.ones(2), np.array([1.0, np.nan])) == float("inf")


# ------------------------------------------------------------------------------------------------ what can't be checked


# Backwards that double an array in place.
INTO_INPUT = operation(backward=lambda ctx, dy: (np.multiply(ctx.saved[0], 2, out=ctx.saved[0]),), base=Power)
INTO_OUTPUT = operation(backward=lambda ctx, dy: (np.multiply(ctx.saved[0], 2, out=ctx.saved[0]),), base=Exp)
INTO_DY = operation(backward=lambda ctx, dy: (np.multiply(dy, 2, out=dy),), base=Neg)
NO_GRADIENT = operation(backward=lambda ctx, dy: (None,), base=Neg)


DRAWS = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: INTO_INPUT.apply(x, exponent=2), r"input 0 \(2, 3\) was written into"),
        (INTO_DY.apply, r"dy \(2, 3\) was written into by the backward of my_op"),
        (lambda x: (INTO_DY.apply(x) * 3.0).sum(), r"dy \(2, 3\) was written into by the backward of my_op"),
        (INTO_OUTPUT.apply, r"output \(2, 3\) was written into"),
        (NO_GRADIENT.apply, r"input 0 \(2, 3\) received no gradient"),
        (lambda x: x.exp() + x.detach(), "is wrong"),
        (lambda x: Tensor(x.data.copy()).exp(), "not computed from its inputs"),
        (lambda x: x, "not computed from its inputs"),
        (lambda x: (x.sum(), x)[1], "not computed from its inputs"),
        (lambda x: x.data, "must return a Tensor, got ndarray"),
        (lambda x: x * DRAWS.standard_normal((2, 3)), "two different outputs"),
    ],
    ids="input dy inner_dy output none detached from_data identity another array random".split(),
)
def test_misuse(fn, message):
    with pytest.raises(GradcheckError, match=message):
        gradcheck(fn, normal(2, 3))


def test_what_has_no_differences_is_refused():
    for value in (np.nan, np.inf):
        with pytest.raises(GradcheckError, match=r"^input 1 \(2,\) holds a nan or an infinity"):
            gradcheck(ops.mul, np.ones(2), np.array([1.0, value]))
    for fn, x in ((ops.log, 0.0), (ops.sqrt, -1.0), (lambda x: x * x, 1e200)):
        with pytest.raises(GradcheckError, match=r"^the output \(2,\) holds a nan or an"), np.errstate(all="ignore"):
            gradcheck(fn, np.array([1.0, x]))
    for h in (0.0, -1e-3, np.nan):
        with pytest.raises(GradcheckError, match="h must be above 0, got"):
            gradcheck(ops.exp, np.ones(2), h=h)


# ----------------------------------------------------------------------------------------------------- the command line


def test_a_failure_gives_status_1_and_a_report(monkeypatch, capsys):
    without_its_subtraction = staticmethod(lambda ctx, dy: (ctx.saved[0] * dy,))
    monkeypatch.setattr(Softmax, "backward", without_its_subtraction)
    status, out, _ = command(capsys, main, "softmax", "tanh")
    assert status == 1 and "softmax, (2, 3): the gradient of input 0 is wrong" in out
    assert out.count("tanh") == len([line for line in out.splitlines() if line.endswith("passed")])
    assert "FAILED" in out.splitlines()[-1]


def test_an_unknown_operation_gives_status_2_and_one_line_and_help_names_all(capsys):
    told = refusal(capsys, main, "softmax", "layernorm")
    assert told == "gradcheck: unknown operation 'layernorm': did you mean layer_norm?\n"
    with pytest.raises(ConfigError, match="there are add, attention"):
        cases_of("zzz")
    status, out, _ = command(capsys, main, "--help")
    assert status == 0 and "layer_norm" in out


@pytest.mark.parametrize("first", ["minijepa", "minijepa.gradcheck", "minijepa.gradcheck.cases", "minijepa.explain"])
def test_the_package_does_not_hide_the_function(first):
    """Both are called gradcheck: whatever is imported, in whatever order, the name in minijepa stays the function's."""
    others = ["minijepa.gradcheck", "minijepa.gradcheck.cases", "minijepa.gradcheck.__main__"]
    lines = [
        f"import {name}; from minijepa import gradcheck; assert callable(gradcheck) and minijepa.gradcheck is gradcheck"
        for name in (first, *others)
    ]
    code = "\n".join([*lines, "from minijepa.gradcheck import cases, numeric_gradient"])
    done = python("-W", "error", "-c", code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("case", ALL)
def test_a_gradient_does_not_depend_on_who_else_wants_one(case):
    """Each input alone receives the same gradient as together with the others, and constants receive none."""

    def gradients(wanted):
        tensors = [Tensor(np.asarray(a), requires_grad=i in wanted) for i, a in enumerate(case.arrays)]
        differentiate(lambda: case.fn(*tensors), normal_like)
        return [t.grad for t in tensors]

    everybody = gradients(range(len(case.arrays)))
    for i in range(len(case.arrays)):
        alone = gradients({i})
        np.testing.assert_allclose(alone[i], everybody[i], rtol=1e-12, atol=1e-300)
        assert all(g is None for k, g in enumerate(alone) if k != i)
