"""The engine: what is recorded, in which order gradients flow, where they go, and what misuse says."""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny import differentiate, operation, raises

from minijepa import Parameter, Tape, Tensor, no_tape, ops
from minijepa.autograd import current_tape
from minijepa.errors import DtypeError, ShapeError, TapeError


def leaf(*values, dtype=np.float32):
    return Tensor(np.array(values, dtype), requires_grad=True)


def square(ctx, x):
    ctx.save(x)
    return x * x


# y = x²;  dx = 2x dy
Square = operation(square, lambda ctx, dy: (2 * ctx.saved[0] * dy,), "Square", shapes="(...) -> (...)")


# ------------------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_float_array_is_looked_at_and_not_copied(dtype):
    array = np.zeros((2, 3), dtype)
    x = Tensor(array)
    assert x.data is array and Tensor(x).data is array and x.detach().data is array
    assert (x.shape, x.ndim, x.size, len(x), x.dtype) == ((2, 3), 2, 6, 2, dtype)
    assert x.grad is None and not x.requires_grad


def test_item_repr_and_parameter():
    assert Tensor([[2.5]]).item() == 2.5 and type(Tensor(2).item()) is float
    assert repr(Tensor([1, 2], requires_grad=True)) == "Tensor([1. 2.], float32, requires_grad=True)"
    weight = Parameter(np.zeros((2, 2)), decay=True, name="weight")
    assert weight.requires_grad and weight.decay and weight.name == "weight"
    assert not Parameter([0.0]).decay


# ------------------------------------------------------------------------------------------------------------ recording


def test_only_inside_a_tape_and_only_if_an_input_requires_a_gradient():
    x, constant = leaf(1, 2), Tensor([3, 4])
    assert not (x * x).requires_grad
    with Tape() as tape:
        assert not (constant * constant).requires_grad
        assert tape.entries == []
        y = x * constant
        assert y.requires_grad and len(tape.entries) == 1
        with no_tape():
            assert current_tape() is None
            assert not (x * x).requires_grad
        assert current_tape() is tape and len(tape.entries) == 1
    assert current_tape() is None
    assert not (y * y).requires_grad  # y was recorded, but nothing is being recorded any more


def test_needs_tells_an_operation_whose_gradient_is_wanted():
    seen = []

    def forward(ctx, a, b, c):
        ctx.save(a)
        seen.append((ctx.needs, len(ctx.saved)))
        return a + b

    op = operation(forward, lambda ctx, dy: (dy, dy, None), shapes="(...), (...), (...)? -> (...)")
    with Tape():
        op.apply(leaf(1), Tensor([1]), None)
        with no_tape():
            op.apply(leaf(1), leaf(1), None)
    assert seen == [((True, False, False), 1), ((False, False, False), 0)]


def test_a_tape_can_be_entered_again():
    x, tape = leaf(2), Tape()
    with tape:
        y = x * x
    with tape:
        z = (y * x).sum()
    tape.backward(z)
    assert x.grad.tolist() == [12]


def test_an_exception_inside_leaves_no_tape_behind():
    with pytest.raises(ZeroDivisionError), Tape():
        raise ZeroDivisionError
    assert current_tape() is None
    with Tape() as tape:
        with pytest.raises(ZeroDivisionError), no_tape():
            raise ZeroDivisionError
        assert current_tape() is tape


# ------------------------------------------------------------------------------------------------------------- backward


def test_operations_that_the_loss_does_not_depend_on_are_passed_over():
    x, unused = leaf(2), leaf(3)
    with Tape() as tape:
        h = x * x
        ops.sqrt(h - 4.0)  # its gradient would be infinite
        loss = h * 3.0
        h * unused
    tape.backward(loss)
    assert x.grad.tolist() == [12] and tape.reached == {x} and unused.grad is None


def test_a_chain_of_ten_thousand_operations():
    x = leaf(1)
    with Tape() as tape:
        y = x
        for _ in range(10_000):
            y = y + x
    tape.backward(y)
    assert x.grad.tolist() == [10_001]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_accumulate_until_zero_grad_and_leaves_may_have_no_axes(dtype):
    """NumPy's operations on arrays without axes return scalars, which can't be added to in place."""
    x = Tensor(np.array(3, dtype), requires_grad=True)

    def compute():
        h = x * 1.0
        return h * h + h + 4.0 * h

    for expected in (2 * 3 + 1 + 4, 2 * (2 * 3 + 1 + 4)):
        loss = differentiate(compute)
        assert loss.dtype == dtype and isinstance(loss.data, np.ndarray)
        assert isinstance(x.grad, np.ndarray) and x.grad.dtype == dtype and x.grad == expected
    kept = x.grad
    x.zero_grad()
    assert x.grad is kept and kept == 0


def test_a_preset_gradient_is_added_to_in_place():
    """A model's gradients are views into one flat vector."""
    flat = np.zeros(5, np.float32)
    a, b = leaf(1, 2), leaf(3, 4, 5)
    a.grad, b.grad = flat[:2], flat[2:]
    for _ in range(2):
        differentiate(lambda: (a * a).sum() + (b * 2.0).sum())
    assert flat.tolist() == [4, 8, 4, 4, 4]
    assert a.grad.base is flat and b.grad.base is flat


def test_into_a_dict_fills_given_arrays_adds_missing_leaves_and_leaves_grad_alone():
    a, b = leaf(1, 2), leaf(3, 4)
    a.grad = kept = np.full(2, 7, np.float32)
    mine = np.array([10, 10], np.float32)
    into = {a: mine}
    for _ in range(2):
        differentiate(lambda: (a * b).sum(), into=into)
    assert into[a] is mine and mine.tolist() == [16, 18]
    assert into[b].tolist() == [2, 4] and into.keys() == {a, b}
    assert a.grad is kept and kept.tolist() == [7, 7] and b.grad is None


def test_threads_have_their_own_tapes():
    """All threads are inside of their tape at once, on the same leaf."""
    x = leaf(*range(1, 5))
    lanes, barrier = [{} for _ in range(4)], threading.Barrier(4, timeout=10)

    def work(i):
        with Tape(into=lanes[i]) as tape:
            barrier.wait()
            h = x
            for _ in range(50):
                h = h * 1.0
            loss = (h * float(i)).sum()
            assert len(tape.entries) == 52 and current_tape() is tape
            barrier.wait()
        tape.backward(loss)

    with Tape() as tape:
        assert list(ThreadPoolExecutor(4).map(work, range(4))) == [None] * 4
        assert tape.entries == [] and current_tape() is tape
    assert [lane[x].tolist() for lane in lanes] == [[i] * 4 for i in range(4)]
    assert x.grad is None


def test_a_backward_that_hands_out_one_array_twice_does_not_alias():
    """Add returns dy for both inputs. Adding to one of the gradients in place would change the other."""
    a, b = leaf(1), leaf(1)
    differentiate(lambda: (a + b) + a * 10.0)
    a.grad += 100
    assert a.grad.tolist() == [111] and b.grad.tolist() == [1]

    into = {}
    differentiate(lambda: a + b, into=into)
    into[a] += 100
    assert into[a].tolist() == [101] and into[b].tolist() == [1]

    x, y = leaf(1), leaf(1)
    with Tape() as tape:  # the same with values in between, one of which receives more gradients
        a, b = x * 1.0, y * 1.0
        loss = (a * 5.0 + a * 3.0) + (a + b)
    tape.backward(loss)
    assert x.grad.tolist() == [9] and y.grad.tolist() == [1]


def test_a_tensor_is_walked_row_by_row_and_a_scalar_is_not():
    rows = list(leaf(1, 2).reshape(2, 1))
    assert [row.data.tolist() for row in rows] == [[1], [2]]
    for walk in (list, sum, len):
        with pytest.raises(ShapeError, match="a scalar Tensor has no length"):
            walk(Tensor(3.0))
    assert bool(Tensor(2.0)) and not bool(Tensor([0.0]))
    with pytest.raises(ValueError, match="ambiguous"):
        bool(Tensor([1, 2]))


def test_a_list_of_axes_is_a_tuple_of_axes():
    x = Tensor(np.arange(6).reshape(1, 2, 3))
    assert x.sum(axis=[0, 1]).data.tolist() == x.sum(axis=(0, 1)).data.tolist() == [3, 5, 7]


def test_no_tape_may_be_entered_again_and_shared_by_threads():
    """Each thread returns to its own tape, whichever entered last."""
    suspended, seen = no_tape(), []

    def work():
        with Tape() as mine:
            with suspended, suspended:
                seen.append(current_tape())
            seen.append(current_tape() is mine)

    with Tape() as tape:
        with suspended:
            ThreadPoolExecutor(1).submit(work).result()
        assert current_tape() is tape and seen == [None, True]


def test_backward_from_something_other_than_a_tensor():
    with Tape() as tape:
        leaf(1, 2).sum()
    for loss in (1.0, np.float32(1)):
        with pytest.raises(TapeError, match="backward starts from a Tensor"):
            tape.backward(loss)


@pytest.mark.parametrize("into", [False, True])
def test_a_cotangent_may_be_the_gradient_of_a_leaf(into):
    """Backward adds to it in place, while the other entries still need the cotangent."""
    x, w, grad = leaf(1, 2), leaf(3, 4), np.array([1, 1], np.float32)
    x.grad = None if into else grad
    with Tape(into={x: grad} if into else None) as tape:
        y = x * x + w * x
    tape.backward(y, grad)
    assert grad.tolist() == [1 + 5, 1 + 8]  # 1 + (2x + w)


def test_a_cotangent_may_be_a_list_an_array_or_a_tensor_and_is_1_for_a_scalar_with_axes():
    for dy in ([1, 2], np.array([1.0, 2.0]), Tensor([1, 2]), np.array([1, 0, 2, 0])[::2]):
        x = leaf(1, 2)
        differentiate(lambda x=x: x * 3.0, dy)
        assert x.grad.tolist() == [3, 6]
    x = leaf(1, 2)
    differentiate(lambda: (x * x).sum(keepdims=True))
    assert x.grad.tolist() == [2, 4]


# ----------------------------------------------------------------------------------------------------------- memory


class Saves:
    """Operations y = x, each of which saves an array of its own; ``alive`` counts these when each backward runs."""

    def __init__(self):
        self.saved, self.alive = [], []
        self.apply = operation(self.forward, self.backward, shapes="(...) -> (...)").apply

    def count(self):
        return sum(reference() is not None for reference in self.saved)

    def forward(self, ctx, x):
        mine = x.copy()
        self.saved.append(weakref.ref(mine))
        ctx.save(mine)
        return x.copy()

    def backward(self, ctx, dy):
        self.alive.append(self.count())
        return (dy,)


def test_backward_frees_what_was_saved_as_it_goes():
    x, saves = leaf(1), Saves()
    with Tape() as tape:
        y = saves.apply(saves.apply(saves.apply(x)))
    assert saves.count() == 3
    tape.backward(y)
    assert saves.alive == [3, 2, 1]
    assert saves.count() == 0 and tape.entries == []  # though the tape and its results are still here


def test_a_forgotten_tape_frees_everything_and_nothing_is_kept_outside_of_one():
    x, saves = leaf(1), Saves()
    with Tape() as tape:
        y = saves.apply(saves.apply(x))
    del tape
    with Tape(), no_tape():
        z = saves.apply(x)
    assert y.requires_grad and y.data == saves.apply(x).data == z.data and saves.count() == 0


# ------------------------------------------------------------------------------------------------------ misuse of tapes


def test_a_tape_is_used_up_by_its_backward():
    x = leaf(1, 2)
    with Tape() as tape:
        loss = x.sum()
        tape.backward(loss)
        with raises(TapeError, "mul: this tape was used up by backward: make a new Tape()"):
            x * x
    first = "this tape was used up by its first backward"
    with raises(TapeError, f"{first}: record the computation again in a new Tape()"):
        tape.backward(loss)
    assert x.grad.tolist() == [1, 1]
    with raises(TapeError, "this tape was used up by backward: make a new Tape()"), tape:
        pass


def test_nested_tapes():
    with Tape() as tape:
        nested = "a tape is already recording in this thread: tapes don't nest; suspend it with no_tape()"
        with raises(TapeError, nested), Tape():
            pass
        assert current_tape() is tape
        with no_tape(), Tape() as inner:
            assert current_tape() is inner
        assert current_tape() is tape


@pytest.mark.parametrize("how", ["a leaf", "computed outside", "needs no gradient", "on another tape"])
def test_a_loss_that_is_not_on_this_tape(how):
    x = leaf(1)
    outside = (x * x).sum()
    with Tape():
        other = (x * x).sum()
    with Tape() as tape:
        constant = (Tensor([1]) * 2.0).sum()
    loss = {"a leaf": x, "computed outside": outside, "needs no gradient": constant, "on another tape": other}[how]
    with raises(
        TapeError,
        f"the loss of shape {loss.shape} is not on this tape: it was computed outside of `with Tape()`, on another "
        "tape, or from inputs that require no gradient",
    ):
        tape.backward(loss)


@pytest.mark.parametrize("state", ["open", "used up", "forgotten"])
def test_an_input_that_was_recorded_on_another_tape(state):
    x = leaf(1, 2)
    with Tape() as other:
        h = x * x
    if state == "used up":
        other.backward(h, [1, 1])
    elif state == "forgotten":
        del other
    with Tape() as tape:
        with raises(
            TapeError,
            "add: an input of shape (2,) was recorded on another tape; compute it inside this one, or use x.detach() "
            "if no gradient should flow through it",
        ):
            h + x
        assert tape.entries == []
        assert (h.detach() + x).requires_grad


def test_a_result_without_a_cotangent_or_with_one_of_the_wrong_shape_and_then_the_right_one():
    x = leaf(1, 2)
    with Tape() as tape:
        y = x * x
    with raises(
        TapeError,
        "backward from a tensor of shape (2,), which is not a scalar, needs a cotangent: "
        "tape.backward(y, dy) with dy of y's shape, or reduce y with sum() or mean()",
    ):
        tape.backward(y)
    with raises(ShapeError, "backward: the cotangent has shape (3,), the tensor (2,)"):
        tape.backward(y, [1, 2, 3])
    tape.backward(y, [1, 10])  # neither mistake has used the tape up
    assert x.grad.tolist() == [2, 40]


# ---------------------------------------------------------------------------------------------------------- print(tape)


def test_a_printed_tape():
    x = Tensor(np.ones((20, 3), np.float32))
    weight, bias = Parameter(np.ones((40, 3), np.float32)), Parameter(np.ones(40, np.float32))
    with Tape() as tape:
        y = ops.gelu(ops.linear(x, weight), bias)
        loss = (y * y).sum()
    assert str(tape).splitlines() == [
        "#  operation  inputs       output                        saved",
        "0  linear     20×3 40×3 -  20×40                             0",  # x and the weight live anyway
        "1  gelu       20×40 40     20×40                         3,200",  # the derivative
        "2  mul        20×40 20×40  20×40                         3,200",  # y, counted once
        "3  sum        20×40        scalar                            0",
        "                           bytes saved, each array once  6,400",
    ]
    tape.backward(loss)
    assert str(tape) == "Tape: used up by backward"


def test_a_printed_tape_counts_memory_shared_by_views_once():
    x = leaf(*range(10))
    with Tape() as tape:
        h = ops.exp(x)  # saves h
        h[2:4] * h.reshape(2, 5)[0, :2] * ops.expand(h[:1], (2,))  # views of h, and then a new product
    saved = [line.split()[-1] for line in str(tape).splitlines()[1:]]
    assert saved == ["40", "0", "0", "0", "0", "0", "0", "8", "48"]


# -------------------------------------------------------------------------------------------------------- own functions


def returning(result=None, backward=None, name="MyOp2D"):
    """An operation on (t, d), (d)? that returns what it is told to."""
    return operation(
        lambda ctx, x, b: x + 1 if result is None else result(x),
        lambda ctx, dy: backward(dy),
        name,
        shapes="(t, d), (d)? -> (t, d)",
    )


def run_backward(op):
    x, b = Parameter(np.ones((2, 3), np.float32)), Parameter(np.ones(3, np.float32))
    differentiate(lambda: op.apply(x, b), np.ones((2, 3), np.float32))
    return x.grad, b.grad


SHAPE = (
    "backward returned shape {} for input {}, whose shape is {}: "
    "a gradient holds dL/dx for each element of x, so it has x's shape"
)
KEEPS = ": Python numbers keep the dtype, NumPy's scalars and arrays of another dtype don't, nor do comparisons"
TWO = "backward must return a tuple of 2, one slot per input (2, 3), (3,); got "
GIVEN = "backward, given dy (2, 3), with inputs (2, 3), (3,) and nothing saved: "


@pytest.mark.parametrize(
    ("backward", "error", "message"),
    [
        (lambda dy: dy, ShapeError, TWO + "ndarray"),
        (lambda dy: None, ShapeError, TWO + "NoneType"),
        (lambda dy: [dy, dy], ShapeError, TWO + "list"),
        (lambda dy: (dy,), ShapeError, TWO + "a tuple of 1"),
        (lambda dy: (dy, None, None), ShapeError, TWO + "a tuple of 3"),
        (lambda dy: (dy.T, None), ShapeError, SHAPE.format("(3, 2)", 0, "(2, 3)")),
        (lambda dy: (dy[:1], None), ShapeError, SHAPE.format("(1, 3)", 0, "(2, 3)")),
        (lambda dy: (dy, dy[0, :1]), ShapeError, SHAPE.format("(1,)", 1, "(3,)")),
        (
            lambda dy: (dy * np.float64(2), None),
            DtypeError,
            "backward returned float64 for input 0, which is float32 (2, 3)" + KEEPS,
        ),
        (lambda dy: (2.0, None), DtypeError, "backward must return an array or None for input 0; got float"),
        (lambda dy: (None, Tensor(dy)), DtypeError, "backward must return an array or None for input 1; got Tensor"),
        (lambda dy: (np.reshape(dy, 7), None), ShapeError, GIVEN + "cannot reshape array of size 6 into shape (7,)"),
        (lambda dy: (dy[:, [5]], None), ShapeError, GIVEN + "index 5 is out of bounds for axis 1 with size 3"),
    ],
)
def test_a_wrong_backward_is_named(backward, error, message):
    with raises(error, f"my_op2_d: {message}"):
        run_backward(returning(backward=backward))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: x * np.float64(2), "forward was given float32 and returned float64" + KEEPS),
        (lambda x: x > 0, "forward was given float32 and returned bool" + KEEPS),
        (lambda x: (x, x), "forward must return one array; got tuple"),
        (lambda x: 1.0, "forward must return one array; got float"),
        (lambda x: Tensor(x), "forward must return one array; got Tensor"),
    ],
)
def test_a_wrong_forward_is_named(result, message):
    with raises(DtypeError, f"scale: {message}"):
        returning(result, name="Scale").apply([[1.0]], None)


def test_one_gradient_without_its_comma():
    forgets = operation(backward=lambda ctx, dy: 2 * dy, name="Forgets", base=Square)
    message = "one slot per input (2,); got ndarray: return (dx,), with the comma"
    with raises(ShapeError, f"forgets: backward must return a tuple of 1, {message}"):
        differentiate(lambda: forgets.apply(leaf(1, 2)), [1, 1])


def test_saved_arrays_that_do_not_fit_backwards_names():
    def backward(ctx, dy):
        _, y = ctx.saved
        return (y * dy,)

    forgets = operation(backward=backward, name="Forgets", base=Square)
    start = r"^forgets: backward, given dy \(2,\), with inputs \(2,\) and \(2,\) saved: not enough values to unpack"
    with pytest.raises(ShapeError, match=start):
        differentiate(lambda: forgets.apply(leaf(1, 2)), [1, 1])


def test_calling_an_operation_and_asking_a_tensor_to_run_backward():
    with raises(TapeError, "Square is an operation and can't be instantiated: call Square.apply(...)"):
        Square([1.0, 2.0])
    words = "a Tensor does not know its tape: with Tape() as tape: loss = ...; then tape.backward(loss)"
    with raises(TapeError, words):
        leaf(1, 2).sum().backward()


def test_a_gradient_may_be_missing():
    assert [g is None for g in run_backward(returning(backward=lambda dy: (dy, None)))] == [False, True]
    assert [g is None for g in run_backward(returning(backward=lambda dy: (None, dy[0])))] == [True, False]


def test_a_function_without_formulas():
    nothing = operation(name="Nothing")
    with pytest.raises(NotImplementedError):
        nothing.apply([1.0])
    with raises(ShapeError, "nothing: takes (*)+ -> (*), was given nothing: it takes at least 1 inputs and got 0"):
        nothing.apply()


def test_the_name_of_an_operation_is_that_of_its_function():
    names = [returning(name=name).op_name for name in ("LayerNorm", "L2Loss", "SmoothL1Loss", "Gelu", "RMSNorm")]
    assert names == ["layer_norm", "l2_loss", "smooth_l1_loss", "gelu", "rms_norm"]


# --------------------------------------------------------------------------------------------------- dtypes and devices


@pytest.mark.parametrize("other", [2, 2.5, np.float64(2.5), [1, 2], np.arange(2), True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_lists_and_integers_take_the_dtype_of_the_tensor_or_array_they_meet(dtype, other):
    x, product, difference = leaf(1, 2, dtype=dtype), [1, 2] * np.asarray(other), np.asarray(other) * 1.0 - [1, 2]
    for y, value in (
        (x * other, product), (ops.mul(x.data, other), product),
        (other - x, difference), (ops.sub(other, x.data), difference),
    ):  # fmt: skip
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.data, value)


@pytest.mark.parametrize("other", [Tensor(np.ones(2)), np.ones(2)], ids=["tensor", "array"])
def test_float32_and_float64_do_not_mix(other):
    remedy = "convert them to one dtype with array.astype"
    with raises(DtypeError, f"mul: its inputs are float32 (2,), float64 (2,); {remedy}"):
        leaf(1, 2) * other
    with raises(DtypeError, f"mul: its inputs are float64 (2,), float32 (2,); {remedy}"):
        other * leaf(1, 2)
