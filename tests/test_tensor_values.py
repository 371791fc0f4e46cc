"""Tensors as values: comparisons, NumPy's functions, copies, and arrays of other classes, byte orders and dtypes."""

import copy
import pickle

import numpy as np
import pytest
from tiny import differentiate, normal_like, values_and_gradients

from minijepa import Parameter, Tape, Tensor, gradcheck, ops
from minijepa.errors import DtypeError, ShapeError, TapeError
from minijepa.gradcheck.cases import CASES

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")

LOSES = "converting a Tensor to an array would drop its gradient: use tensor.data"


# ---------------------------------------------------------------------------------------------------------- comparisons


def test_comparisons_are_about_the_values():
    s, t = Tensor(3.0), Parameter([[1.0, 2.0], [3.0, 4.0]])
    assert s == 3 and np.float32(3) == s and s == Tensor(3.0) and s != 4 and s != "word" and s != None  # noqa: E711
    assert s < 4 and s <= 3 and s > 2 and s >= 3 and not s < 3 and not bool(s != 3)
    assert 2.0 in t and 5 not in t and 3 in s and np.nan not in Tensor([np.nan])
    for answer, wanted in (
        (t == [1, 4], [[True, False], [False, True]]), (t != t, [[False] * 2] * 2),
        (np.array([1, 4]) == t, [[True, False], [False, True]]), (t > 2, [[False] * 2, [True] * 2]),
        (np.array([1, 4]) < t, [[False, False], [True, False]]),
    ):  # fmt: skip
        assert type(answer) is np.ndarray and answer.dtype == bool and answer.tolist() == wanted
    assert np.array_equal(s, s) and np.array_equal(t.detach(), t.data) and np.allclose(t.detach(), t.detach())
    with pytest.raises(DtypeError, match=LOSES):
        np.array_equal(t, t)  # which would swallow an exception, and say False


def test_a_scalar_is_a_number_and_can_be_formatted():
    loss = Parameter([[2.5]])
    assert float(loss) == 2.5 and f"{loss:.2f} {loss}" == f"2.50 {loss!r}" and f"{Tensor(np.float64(0.1)):g}" == "0.1"
    for use in (float, "{:.2f}".format):
        with pytest.raises(ValueError, match="size 1|one element"):
            use(Tensor([1.0, 2.0]))


def test_rows_of_different_lengths_are_a_shape_error():
    for use in (Tensor, lambda rows: Tensor([1.0]) * rows, lambda rows: ops.matmul(rows, rows)):
        with pytest.raises(ShapeError, match="a Tensor can't be made from this list: .*inhomogeneous"):
            use([[1.0], [1.0, 2.0]])


def test_a_tensor_is_itself_as_a_key():
    a, b = Tensor([1.0, 2.0]), Tensor([1.0, 2.0])
    names = {a: "a", b: "b"}
    assert (names[a], names[b], a in names, Tensor([1.0, 2.0]) in names) == ("a", "b", True, False)
    assert len({a, b, a}) == 2 and {a, b} == {b, a} and hash(a) != hash(b)


# ------------------------------------------------------------------------------------------------------- NumPy and copy


def test_what_requires_no_gradient_is_an_array_to_numpy():
    t = Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert np.asarray(t) is t.data and np.asarray(t, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(t), t.data)
    assert np.argmax(t, axis=1).tolist() == [1, 1] and np.linalg.norm(t) == pytest.approx(30**0.5)
    assert np.concatenate([t, t.data]).shape == (4, 2) and np.asarray([t[0], t[1]]).tolist() == t.data.tolist()


def test_what_requires_a_gradient_is_not():
    t = Parameter([1.0, 2.0])
    with Tape():
        recorded = t * 2.0
    calls = (np.asarray, np.array, np.argmax, lambda t: np.concatenate([t, t]), lambda t: np.copyto(t, 0))
    for x in (t, recorded):
        for call in calls:
            with pytest.raises(DtypeError, match=LOSES):
                call(x)
    assert (np.shape(t), np.ndim(t), np.size(t)) == ((2,), 1, 2)
    with pytest.raises(TypeError, match="does not support ufuncs"):
        np.exp(t)


def test_sum_mean_and_max_of_numpy_are_the_operations():
    for function, gradient in ((np.sum, [1, 1]), (np.mean, [0.5, 0.5]), (np.max, [0, 1])):
        x = Parameter([1.0, 2.0])
        y = differentiate(lambda function=function, x=x: function(x))
        assert y.item() == function(x.data) and x.grad.tolist() == gradient
    x = Tensor(np.arange(6).reshape(2, 3))
    assert np.sum(x, 0).data.tolist() == [3, 5, 7] and np.mean(x, axis=(0, 1), keepdims=True).shape == (1, 1)
    assert np.sum(a=x) == 15 and np.mean([x, x]) == 2.5
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtype'"):
        np.sum(x, dtype=np.float64)


def test_a_copy_keeps_its_gradient_or_is_refused():
    x = Parameter([1.0, 2.0], name="x")
    with Tape() as tape:
        y = x * x
        for how in (copy.copy, copy.deepcopy, pickle.dumps, lambda y: copy.deepcopy([y])):
            with pytest.raises(TapeError, match=r"^copying a recorded Tensor would drop its gradient.*detach\(\)$"):
                how(y)
        with pytest.raises(TapeError, match="would drop it: use that one or detach"):
            Tensor(y)
        loss = y.sum()
    tape.backward(loss)
    for how in (copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        again = how(x)
        assert again is not x and again.name == "x" and again.data.tolist() == [1, 2] and again.grad.tolist() == [2, 4]
        assert how(y.detach()).data.tolist() == [1, 4]


# ----------------------------------------------------------------------------------------------------------- odd arrays


def run(case, convert):
    """Value and gradients of a case, of its arrays as ``convert`` makes them."""
    return values_and_gradients(case.fn, map(convert, case.arrays), lambda y: convert(normal_like(y)))


def read_only(a):
    a = np.array(a)
    a.flags.writeable = False
    return a


def as_matrix(a):
    return np.matrix(a) if a.ndim == 2 else a


def unaligned(a):
    odd = np.zeros(a.shape, [("one", "u1"), ("x", a.dtype)])["x"]
    odd[...] = a
    return odd


def strided(a):
    return np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a


class OwnArithmetic(np.ndarray):
    def __mul__(self, other):
        return np.ndarray.__mul__(self, 3 * other)

    __rmul__ = __mul__


ODD = {
    "matrix": as_matrix, "big-endian": lambda a: a.astype(">f8"), "own arithmetic": lambda a: a.view(OwnArithmetic),
    "read-only": read_only, "unaligned": unaligned, "strided": strided,
    "by columns": lambda a: a.copy(order="F"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("op", CASES)
def test_odd_arrays_give_the_numbers_of_plain_ones(op, kind):
    for case in CASES[op][:6]:
        for found, wanted in zip(run(case, ODD[kind]), run(case, lambda a: a), strict=True):
            assert type(found) is np.ndarray and found.dtype == np.float64 and found.dtype.isnative
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_masked_arrays_lists_row_numbers_labels_lengths_and_cotangents_are_refused():
    numbers, values = np.ma.masked_array([0, 1], [0, 1]), np.ma.masked_array([1.0, 2.0], [0, 0])
    for call in (
        lambda: Parameter(values), lambda: ops.exp(values), lambda: gradcheck(ops.exp, values),
        lambda: differentiate(lambda: Parameter([1.0, 2.0]) * 2.0, values), lambda: Tensor([numbers, numbers]),
        lambda: Tensor([[1.0], (numbers[1],)]), lambda: ops.exp([numbers]), lambda: ops.rows(np.ones((2, 2)), numbers),
        lambda: ops.cross_entropy(np.ones((2, 2)), numbers), lambda: ops.Packing(numbers + 1),
    ):  # fmt: skip
        with pytest.raises(DtypeError, match=r"^a masked array would lose its mask: use array\.filled"):
            call()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("word", "str of dtype <U4"), (["a"], "list of dtype <U1"), (1j, "complex of dtype complex128"),
        ([None], "list of dtype object"), (np.array([1, 2], object), "ndarray of dtype object"),
        (np.ones(2, complex), "ndarray of dtype complex128"), (np.ones(2, "m8"), "ndarray of dtype timedelta64"),
    ],
)  # fmt: skip
def test_data_without_real_numbers_is_refused_by_tensors_operations_and_gradcheck(data, found):
    for use in (Tensor, ops.exp, lambda a: gradcheck(ops.exp, a), lambda a: Tensor(np.ones(2)) * a):
        with pytest.raises(DtypeError, match=f"^a Tensor holds real numbers; got {found}$"):
            use(data)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is double here")
def test_more_digits_than_float64_are_refused_and_not_cut_to_float32():
    with pytest.raises(DtypeError, match=r"^a Tensor holds float32 or float64; got .*: convert it with array\.astype$"):
        Tensor(np.ones(2, np.longdouble))


@pytest.mark.parametrize(("data", "dtype"), [
    (np.float64(0.1), np.float64), (np.float32(0.1), np.float32), (np.array(0.1), np.float64), (0.1, np.float32),
    (np.array([0.1], ">f4"), np.float32), (np.array([0.1], ">f8"), np.float64), (np.arange(2, dtype=">i4"), np.float32),
    *((data, np.float32) for data in (1, 2.5, True, [1, 2], [[1.0], [2.0]], np.arange(3), np.int64(3),
                                      np.ones(2, np.float16), np.ones(2, bool))),
])  # fmt: skip
def test_floats_of_numpy_keep_their_dtype_whatever_the_byte_order_and_all_else_becomes_float32(data, dtype):
    x = Tensor(data)
    assert type(x.data) is np.ndarray and x.dtype == dtype and x.shape == np.shape(data)
    np.testing.assert_array_equal(x.data, np.asarray(data, dtype))
    assert (x * np.ones(1, dtype)).dtype == dtype


def test_what_turns_into_an_array_keeps_its_dtype():
    """Other libraries' arrays, the columns of a data frame."""

    class Column:
        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return self.values

    for dtype, wanted in ((np.float64, np.float64), (np.float32, np.float32), (np.int64, np.float32)):
        x = Tensor(Column(np.arange(3, dtype=dtype)))
        assert x.dtype == wanted and x.data.tolist() == [0, 1, 2]
    assert (Tensor(np.ones(3)) * Column(np.full(3, 0.1))).data.tolist() == [0.1] * 3
    with pytest.raises(DtypeError, match=r"its inputs are float32 \(3,\), float64 \(3,\)"):
        Tensor([1.0, 2.0, 3.0]) * Column(np.ones(3))


def test_a_number_with_an_array_of_another_byte_order():
    for y in (ops.mul(np.array([0.1], ">f8"), 0.1), ops.mul(np.float64(0.1), np.array([0.1], ">f8"))):
        assert y.data.tolist() == [0.1 * 0.1] and y.dtype == np.float64 and y.dtype.isnative


def test_a_matrix_as_a_cotangent_of_the_wrong_shape_is_still_one():
    x = Parameter([1.0, 2.0])
    with pytest.raises(ShapeError, match=r"the cotangent has shape \(1, 2\)"):
        differentiate(lambda: x * 2.0, np.matrix([1.0, 2.0]))
