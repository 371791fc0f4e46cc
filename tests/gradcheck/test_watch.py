"""Arrays that are changed in place between forward and backward: a WatchingTape notices each, and only these."""

import numpy as np
import pytest

from minijepa import Parameter, Tape, WatchingTape, gradcheck, ops
from minijepa.errors import TapeError
from minijepa.gradcheck.cases import CASES


def weights_updated_between_two_losses():
    w, x = Parameter([1.0, 2.0, 3.0]), np.ones(3, np.float32)
    loss = (w * w * x).sum()
    w.data -= 0.5
    return loss + (w * w).sum()


def buffer_filled_again():
    w, buffer = Parameter([1.0, 1.0]), np.array([1.0, 2.0], np.float32)
    loss = (w * buffer).sum()
    buffer[...] = 0
    return loss


def output_overwritten():
    y = ops.exp(Parameter([1.0]))
    y.data[...] = 0
    return y.sum()


def mask_changed():
    mask = np.array([True, False])
    y = Parameter([1.0, 2.0])[mask]
    mask[:] = [False, True]
    return y.sum()


def row_numbers_changed():
    index = np.array([0, 1])
    y = ops.rows(Parameter([[1.0], [2.0]]), index)
    index[...] = 1
    return y.sum()


def labels_changed():
    labels = np.array([0, 1])
    loss = ops.cross_entropy(Parameter(np.eye(2)), labels)
    labels[...] = 1
    return loss


@pytest.mark.parametrize(("program", "words"), [
    (weights_updated_between_two_losses, r"mul: its input 0, of shape \(3,\)"),
    (buffer_filled_again, r"mul: its input 1, of shape \(2,\)"),
    (output_overwritten, r"exp: its output, of shape \(1,\)"),
    (mask_changed, r"slice: an array that it kept, of shape \(2,\)"),
    (row_numbers_changed, r"rows: an array that it kept, of shape \(2,\)"),
    (labels_changed, r"cross_entropy: an array that it kept, of shape \(2,\)"),
])  # fmt: skip
def test_a_change_in_place_is_noticed(program, words):
    with WatchingTape() as tape:
        loss = program()
    with pytest.raises(TapeError, match=f"^{words}, was changed in place after forward"):
        tape.backward(loss)


def test_gradcheck_notices_too():
    def fn(x):
        y = x.exp()
        loss = y * 2.0
        y.data[...] = 0
        return loss

    with pytest.raises(TapeError, match="mul: its input 0"):
        gradcheck(fn, np.ones(3))


@pytest.mark.parametrize("op", CASES)
def test_what_nobody_changes_is_let_pass_with_the_same_gradients(op):
    for case in CASES[op]:
        gradients = []
        for make in (Tape, WatchingTape):
            leaves = [Parameter(np.array(a)) for a in case.arrays]
            with make() as tape:
                y = case.fn(*leaves)
            tape.backward(y, np.ones(y.shape))
            gradients.append([leaf.grad for leaf in leaves])
        for one, other in zip(*gradients, strict=True):
            np.testing.assert_array_equal(one, other)


def test_what_backward_does_not_need_may_be_changed():
    """A sum needs none of its inputs; a new array in a tensor leaves the old one to whoever kept it."""
    w = Parameter([1.0, 2.0])
    with WatchingTape() as tape:
        loss = (w + 1.0).sum() + (w * w).sum()
        w.data = w.data - 1.0
    tape.backward(loss)
    assert w.grad.tolist() == [3, 5]
    w.data -= 1.0
