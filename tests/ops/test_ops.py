"""Operations beyond their gradient checks: fused against composed, dtypes, layouts, and their errors."""

import numpy as np
import pytest
from tiny import differentiate, normal_like, values_and_gradients

from minijepa import Function, Parameter, Tensor, backend, ops
from minijepa.autograd import unbroadcast
from minijepa.errors import ShapeError
from minijepa.explain.operation import function_of
from minijepa.gradcheck.cases import CASES


def assert_same(fused, composed, *arrays):
    y, *gradients = values_and_gradients(fused, arrays)
    wanted, *wanted_gradients = values_and_gradients(composed, arrays)
    np.testing.assert_allclose(y, wanted, rtol=1e-12, atol=1e-12)
    for got, want in zip(gradients, wanted_gradients):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------- each fused operation is its own composition


def composed_softmax(x):
    e = (x - x.data.max(axis=-1, keepdims=True)).exp()  # a constant shift changes neither the value nor the gradient
    return e / e.sum(axis=-1, keepdims=True)


def composed_layer_norm(x, w, b, eps=1e-6):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / ((centred * centred).mean(axis=-1, keepdims=True) + eps).sqrt() * w + b


def composed_gelu(x, bias):
    z = x + bias
    return z * 0.5 * (((z + z**3 * 0.044715) * np.sqrt(2 / np.pi)).tanh() + 1.0)


def composed_attention(qkv, lengths, heads):
    """One sequence and one head after the other, without a packing."""
    dim = qkv.shape[1] // 3
    d = dim // heads
    outputs, start = [], 0
    for length in lengths:
        sequence, start = qkv[start : start + length], start + length
        columns = []
        for h in range(heads):
            q, k, v = (sequence[:, i * dim + h * d : i * dim + (h + 1) * d] for i in range(3))
            columns.append(composed_softmax(q @ k.T * (1 / np.sqrt(d))) @ v)
        outputs.append(ops.concat(columns, axis=1))
    return ops.concat(outputs)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4), (3, 1)])
@pytest.mark.parametrize(
    ("fused", "composed", "vectors"),
    [(ops.softmax, composed_softmax, 0), (ops.layer_norm, composed_layer_norm, 2)],
    ids=["softmax", "layer_norm"],
)
def test_softmax_and_layer_norm_are_their_compositions(rng, fused, composed, vectors, shape, scale):
    """Each takes rows, and so many vectors of their length."""
    assert_same(fused, composed, scale * rng.standard_normal(shape), *rng.standard_normal((vectors, shape[-1])))


@pytest.mark.parametrize("scale", [1e-2, 1.0, 10.0])
def test_gelu_is_its_composition(rng, scale):
    assert_same(ops.gelu, composed_gelu, scale * rng.standard_normal((6, 5)), scale * rng.standard_normal(5))


@pytest.mark.parametrize("lengths", [[4], [1, 1, 1], [3, 3, 5, 1, 5], [2, 7]])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_attention_is_its_composition(rng, lengths, heads):
    qkv = rng.standard_normal((sum(lengths), 3 * 6))
    assert_same(lambda x: ops.attention(x, lengths, heads), lambda x: composed_attention(x, lengths, heads), qkv)


def test_linear_and_the_losses_are_their_compositions(rng):
    x, w, b = rng.standard_normal((4, 3)), rng.standard_normal((2, 3)), rng.standard_normal(2)
    assert_same(ops.linear, lambda x, w, b: x @ w.T + b, x, w, b)
    p, q = rng.standard_normal((5, 4)), rng.standard_normal((5, 4))
    assert_same(ops.l2_loss, lambda p, q: ((p - q) ** 2).sum() / 5, p, q)
    labels = np.array([0, 3, 3, 1, 2])
    onehot = np.eye(4)[labels]
    assert_same(
        lambda x: ops.cross_entropy(x, labels), lambda x: -(composed_softmax(x).log() * onehot).sum() / 5, p
    )  # fmt: skip


def test_smooth_l1_is_quadratic_inside_and_linear_outside():
    p = np.array([[0, 0.5, -3, 2]])
    loss, dp = values_and_gradients(lambda p: ops.smooth_l1_loss(p, np.zeros((1, 4))), [p], None)
    assert loss == pytest.approx((0 + 0.125 + 2.5 + 1.5) / 4)
    np.testing.assert_allclose(dp, np.array([[0, 0.5, -1, 1]]) / 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("far", [[12, 50, 1e4], [1.3e13, 1e19]], ids=["without a warning", "z³ beyond float32"])
def test_gelu_far_from_zero_is_the_identity_or_nothing(far, dtype):
    far, nothing = np.array(far, dtype), np.zeros(len(far))
    with np.errstate(over="warn" if far[0] < 1e13 else "ignore"):
        y, dx = values_and_gradients(ops.gelu, [np.concatenate([-far, far])], lambda y: np.ones(y.shape))
    np.testing.assert_allclose(y, [*nothing, *far], atol=1e-20)
    np.testing.assert_allclose(dx, [*nothing, *nothing + 1], atol=1e-20)


def test_softmax_of_huge_and_masked_scores():
    y = ops.softmax(np.array([[1e30, 1e30, -1e30], [0.0, -np.inf, 0.0]]))
    np.testing.assert_allclose(y.data, [[0.5, 0.5, 0], [0.5, 0, 0.5]])


# -------------------------------------------------------------------------------------------------- for every operation


def ones(*shape):
    return np.ones(shape)


OF_ROWS = {  # operations on n rows, where their first case with fewer rows won't do: (function, arrays)
    "attention": lambda n: (lambda x: ops.attention(x, [1] * n, 2), [ones(n, 12)]),
    "cross_entropy": lambda n: (lambda x: ops.cross_entropy(x, np.zeros(n, int)), [ones(n, 3)]),
    "expand": lambda n: (lambda x: ops.expand(x, (2, n, 3)), [ones(n, 3)]),
    "reshape": lambda n: (lambda x: ops.reshape(x, (3, n)), [ones(n, 3)]),
    "rows": lambda n: (lambda x: ops.rows(x, range(n)), [ones(n, 3)]),
}


def of_rows(op, n):
    """(function, arrays) of an operation: its first case, or that cut to n rows, unless OF_ROWS has another."""
    case = CASES[op][0]
    if n is None:
        return case.fn, case.arrays
    if op in OF_ROWS:
        return OF_ROWS[op](n)
    rows = len(case.arrays[0])
    return case.fn, [a[:n] if len(a) == rows else a for a in case.arrays]


NOT_OF_NONE = {  # what has no meaning without a row, and the words that say so
    "attention": "at least one sequence",
    "cross_entropy": "N ≥ 1",
    "l2_loss": "at least one row",
    "max": "zero-size array",
    "mean": "no elements to average",
    "smooth_l1_loss": "at least one row",
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [None, 1, 0], ids=["first case", "one row", "no rows"])
@pytest.mark.parametrize("op", CASES)
def test_every_operation_keeps_dtype_and_inputs_and_takes_one_row_and_none_or_says_why_not(op, n, dtype):
    fn, arrays = of_rows(op, n)
    leaves = [Parameter(array.astype(dtype)) for array in arrays]
    if n == 0 and op in NOT_OF_NONE:
        with pytest.raises(ShapeError, match=NOT_OF_NONE[op]):
            fn(*leaves)
        return
    dy = np.ones(fn(*leaves).shape, dtype)
    y = differentiate(lambda: fn(*leaves), dy)
    assert y.dtype == dtype and np.isfinite(y.data).all() and (dy == 1).all()
    for leaf, array in zip(leaves, arrays):
        assert leaf.grad.dtype == dtype and leaf.grad.shape == array.shape and np.isfinite(leaf.grad).all()
        np.testing.assert_array_equal(leaf.data, array.astype(dtype))


# Arrays without columns, or without rows and columns: (function, arrays, y's shape).
WITHOUT_COLUMNS = {
    "linear, no outputs": (ops.linear, [ones(3, 4), ones(0, 4), ones(0)], (3, 0)),
    "linear, no inputs": (ops.linear, [ones(3, 0), ones(5, 0), ones(5)], (3, 5)),
    "linear, neither": (ops.linear, [ones(0, 0), ones(0, 0), ones(0)], (0, 0)),
    "linear, three axes": (ops.linear, [ones(2, 3, 0), ones(5, 0)], (2, 3, 5)),
    "matmul, k = 0": (ops.matmul, [ones(3, 0), ones(0, 2)], (3, 2)),
    "matmul, m = 0": (ops.matmul, [ones(2, 3), ones(3, 0)], (2, 0)),
    "matmul, no batch": (ops.matmul, [ones(0, 2, 3), ones(3, 2)], (0, 2, 2)),
    "matmul, empty vectors": (ops.matmul, [ones(0), ones(0)], ()),
    "softmax": (ops.softmax, [ones(3, 0)], (3, 0)),
    "layer_norm": (ops.layer_norm, [ones(3, 0), ones(0), ones(0)], (3, 0)),
    "gelu": (ops.gelu, [ones(3, 0), ones(0)], (3, 0)),
    "l2_loss": (ops.l2_loss, [ones(3, 0), ones(3, 0)], ()),
    "sum": (lambda x: x.sum(axis=1), [ones(3, 0)], (3,)),
    "rows": (lambda x: ops.rows(x, [0, 0, 2]), [ones(3, 0)], (3, 0)),
    "concat": (lambda x, y: ops.concat([x, y], axis=1), [ones(3, 0), ones(3, 2)], (3, 2)),
    "expand": (lambda x: x.expand(2, 0), [ones(2, 1)], (2, 0)),
    "getitem, a mask": (lambda x: x[x > 2], [ones(3, 2)], (0,)),
    "mul, broadcast": (ops.mul, [ones(3, 0), ones(3, 1)], (3, 0)),
}


@pytest.mark.parametrize(("fn", "arrays", "shape"), WITHOUT_COLUMNS.values(), ids=WITHOUT_COLUMNS)
def test_empty_arrays_give_zeros_and_receive_zeros(fn, arrays, shape):
    y, *gradients = values_and_gradients(fn, [np.zeros_like(a) for a in arrays])
    assert y.shape == shape and not y.any()
    for gradient, array in zip(gradients, arrays):
        assert gradient.shape == array.shape
    if not y.size:
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("call", [
    lambda: ops.smooth_l1_loss(ones(3, 0), ones(3, 0)), lambda: ops.attention(ones(3, 0), [3], 1),
    lambda: ops.mean(ones(3, 0), axis=1), lambda: ops.max(ones(3, 0), axis=1),
])  # fmt: skip
def test_what_has_no_value_without_columns_is_refused(call):
    with pytest.raises(ShapeError, match=r"at least one element|D ≥ 1|no elements|zero-size"):
        call()


MANY = 2**24 + 2**16  # rows: a float32 that counts one by one stops at 2²⁴


def test_sums_over_many_rows_do_not_stop_at_sixteen_million():
    dy = np.broadcast_to(np.float32(1), (MANY, 1))
    assert unbroadcast(dy, (1, 1)).tolist() == [unbroadcast(dy, (1,)).tolist()] == [[MANY]]
    assert ops.sum(dy, axis=0).data.tolist() == backend.column_sums(dy).tolist() == [MANY]
    assert ops.mean(dy, axis=(0,)).data.tolist() == [1]
    assert backend.row_sums(dy.T).tolist() == backend.row_dots(dy.T, dy.T).tolist() == [[MANY]]
    assert backend.matmul(dy.T, np.ones_like(dy)).tolist() == [[MANY]]  # a weight's gradient, after a sum


def test_no_operation_is_forgotten():
    """Every Function that ``minijepa.ops`` defines is the one that some operation's first case writes on the tape."""
    defined = {f for f in Function.__subclasses__() if f.__module__.startswith("minijepa.ops.")}
    assert {function_of(op) for op in CASES} == defined


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.matmul(np.ones((2, 3)), np.ones((2, 3))), ["matmul", "(2, 3)"]),
        (lambda: ops.matmul(np.ones((2, 3)), np.ones(2)), ["matmul", "(2, 3), (2,)", "k differs"]),
        (lambda: ops.matmul(np.ones(3), np.ones((2, 3))), ["matmul", "(3,), (2, 3)", "k differs"]),
        (lambda: ops.matmul(np.ones(3), np.ones(())), ["matmul", "(3,), ()"]),
        (lambda: ops.matmul(np.ones((2, 3)), None), ["matmul", "input 1 is None"]),
        (lambda: Tensor(np.ones((3, 2)))[np.ones(2, bool)], ["slice", "boolean"]),
        (lambda: Tensor(np.ones((3, 2)))[np.ones(3, bool), [0]], ["one index array"]),
        (lambda: ops.layer_norm(np.ones((2, 3)), np.ones(4), np.ones(3)), ["layer_norm", "(2, 3)", "(4,)"]),
        (lambda: ops.gelu(np.ones((2, 3)), np.ones(4)), ["gelu", "(2, 3)", "(4,)"]),
        (lambda: ops.l2_loss(np.ones((2, 3)), np.ones((3, 3))), ["l2_loss", "(2, 3)", "(3, 3)"]),
        (lambda: ops.l2_loss(np.ones((0, 3)), np.ones((0, 3))), ["l2_loss", "at least one row"]),
        (lambda: ops.reshape(np.ones((2, 3)), (4, 2)), ["reshape", "(2, 3)"]),
        (lambda: ops.expand(np.ones((2, 3)), (2, 4)), ["expand", "(2, 3)"]),
        (lambda: ops.concat([np.ones((2, 3)), np.ones((2, 4))]), ["concat", "(2, 3)", "(2, 4)"]),
        (lambda: ops.concat([np.ones(2), np.ones(2)], axis=5), ["concat: takes", "was given (2,), (2,)"]),
        *((lambda index=index: Tensor([1.0, 2.0])[index], ["slice: takes", "was given (2,)"])
          for index in (7, (0, 0, 0))),
        (lambda: ops.transpose(np.ones((2, 3)), (0, 0)), ["transpose", "(2, 3)"]),
        (lambda: ops.rows(np.ones((3, 2)), [-1]), ["rows", "-1"]),
        *((lambda label=label: ops.cross_entropy(np.ones((2, 3)), [0, label]), ["cross_entropy", "for 3 classes"])
          for label in (3, -1)),
        (lambda: ops.cross_entropy(np.ones((2, 3)), [0.0, 1.0]), ["cross_entropy", "whole-number"]),
        (lambda: ops.sum(np.ones((2, 3)), axis=2), ["sum", "2", "(2, 3)"]),
        *((lambda index=index: ops.rows(np.ones((3, 2)), index), ["index must be whole numbers in one axis"])
          for index in (3, [[0], [1, 2]], [0.5])),
        *((lambda eps=eps: ops.layer_norm(np.ones((1, 2)), np.ones(2), np.zeros(2), eps=eps),
           ["layer_norm: eps is added to a variance"]) for eps in (-1e-6, float("nan"))),
        *((lambda beta=beta: ops.smooth_l1_loss(np.ones((1, 2)), np.ones((1, 2)), beta=beta),
           ["beta must be above 0"]) for beta in (0, -1.0)),
    ],
)  # fmt: skip
def test_errors_name_the_operation_and_the_shapes(call, words):
    """tests/test_messages.py has whole ones."""
    with pytest.raises(ShapeError) as error:
        call()
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("a", "b"),
    [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((4, 2, 3), (3,)), ((3,), (4, 3, 2)), ((1, 1), (1,)), ((1,), (1,))],
)
def test_products_with_vectors_are_numpys(rng, a, b):
    a, b = rng.standard_normal(a), rng.standard_normal(b)
    y, *_ = values_and_gradients(ops.matmul, [a, b])
    np.testing.assert_allclose(y, a @ b, rtol=1e-12)
    assert y.shape == (a @ b).shape
    for other in (a @ Tensor(b), a.tolist() @ Tensor(b), Tensor(a) @ b.tolist()):
        np.testing.assert_array_equal(other.data, y)


@pytest.mark.parametrize("index", [
    0, -1, np.int64(1), slice(1, None), (slice(None), 1), (..., None), (0, slice(None, None, -1)), None,
    np.eye(3, 4) > 0, np.array([True, False, True]), [True, False, True], (slice(None), [True, False, False, True]),
    (np.array([True, False, True]), 1), (..., np.zeros(4, bool)), np.zeros((3, 4), bool),
], ids=str)  # fmt: skip
def test_slices_and_masks_select_as_in_numpy_and_return_the_gradient(rng, index):
    x = rng.standard_normal((3, 4))
    y, dx = values_and_gradients(lambda x: x[index], [x])
    np.testing.assert_array_equal(y, x[index])
    wanted = np.zeros((3, 4))
    wanted[index] = normal_like(y)
    np.testing.assert_array_equal(dx, wanted)


# ------------------------------------------------------------------------------------------------------------ selection


def test_transpose_remembers_axes_that_change_before_backward():
    axes, x = [1, 2, 0], Parameter(np.ones((2, 3, 4)))
    assert differentiate(lambda: ops.transpose(x, axes), lambda y: axes.reverse() or y.data).shape == (3, 4, 2)
    assert x.grad.shape == (2, 3, 4)
    with pytest.raises(TypeError):  # not only in backward
        ops.transpose(np.ones(3), 0)


def test_a_packing_knows_its_runs_of_equal_length():
    packing = ops.Packing([3, 3, 2, 2, 2, 5])
    assert packing.total == 17
    assert packing.offsets.tolist() == [0, 3, 6, 8, 10, 12, 17]
    assert packing.runs == [(0, 2, 3), (6, 3, 2), (12, 1, 5)]


def test_max_shares_the_gradient_among_ties():
    x = [[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]]
    _, dx = values_and_gradients(lambda x: x.max(axis=1), [x], [6.0, 5.0])
    assert dx.tolist() == [[0, 3, 3], [5, 0, 0]]


def test_a_layer_norm_whose_squares_overflow_is_nan_and_not_zero():
    x = np.array([[1e30, 1e30, -1e30], [1, 2, 3]], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        y = ops.layer_norm(x, np.ones(3, np.float32), np.zeros(3, np.float32)).data
    assert np.isnan(y[0]).all() and np.allclose(y[1], [-1.2247, 0, 1.2247], atol=1e-4)


@pytest.mark.parametrize("count", [1.5, "3", float("nan"), np.array([3, 3]), np.float64(3)], ids=str)
@pytest.mark.parametrize("loss", [ops.l2_loss, ops.smooth_l1_loss])
def test_the_count_of_a_loss_is_a_whole_number(loss, count):
    with pytest.raises(ShapeError, match="count is a number of rows, a whole number; got "):
        loss(np.ones((3, 2)), np.ones((3, 2)), count=count)
    x = np.ones((3, 2), np.float32)
    assert loss(x, 3 * x, count=np.int64(3)).dtype == np.float32 == loss(x, 3 * x, count=np.array(3)).dtype


@pytest.mark.parametrize(("exponent", "slope"), [(0, 0.0), (1, 1.0), (2, 0.0)])
def test_powers_at_zero(exponent, slope):
    _, dx = values_and_gradients(lambda x: x**exponent, [[0.0]], None)
    assert dx.tolist() == [slope]


@pytest.mark.parametrize("score", [39.0, -39.0])
@pytest.mark.parametrize("size", [1e-20, 1e12])
def test_attention_without_a_shift_stays_inside_of_float32(score, size):
    """All scores as far out as goes without subtracting their maximum, with huge and tiny values and gradients."""
    length, width = 64, 4
    qkv = np.ones((length, 3 * width), np.float32)
    qkv[:, :width] = score / 2  # q k / √4 is score
    v = qkv[:, 2 * width :] = size * np.random.default_rng(0).standard_normal((length, width))
    y, dx = values_and_gradients(lambda x: ops.attention(x, [length], 1), [qkv], lambda y: np.full(y.shape, 1e3))
    np.testing.assert_allclose(y, np.broadcast_to(v.mean(axis=0), y.shape), rtol=1e-3, atol=1e-5 * size)
    np.testing.assert_allclose(dx[:, 2 * width :], 1e3, rtol=1e-4)
    assert np.isfinite(dx).all()
