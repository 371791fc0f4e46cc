"""Arrays that are changed in place between forward and backward: a WatchingTape notices each, and only these."""

import numpy as np
import pytest

from minijepa import Parameter, WatchingTape, gradcheck, ops
from minijepa.errors import TapeError

W = Parameter([[1.0], [2.0]])


@pytest.mark.parametrize(("array", "compute", "words"), [
    (np.array([1.0, 2.0], np.float32), lambda a: Parameter(a) * Parameter([1.0, 1.0]), "mul: its input 0"),
    (np.array([1.0, 2.0], np.float32), lambda a: Parameter([1.0, 1.0]) * a, "mul: its input 1"),
    (np.array([True, False]), lambda a: W[a], "slice: an array that it kept"),
    (np.array([0, 1]), lambda a: ops.rows(W, a), "rows: an array that it kept"),
    (np.array([0, 1]), lambda a: ops.cross_entropy(Parameter(np.eye(2)), a), "cross_entropy: an array that it kept"),
])  # fmt: skip
def test_a_change_in_place_is_noticed(array, compute, words):
    with WatchingTape() as tape:
        loss = compute(array).sum()
    array[...] = array[::-1].copy()
    with pytest.raises(TapeError, match=rf"^{words}, of shape \(2,\), was changed in place after forward"):
        tape.backward(loss)


def test_an_output_that_is_overwritten_is_noticed():
    with WatchingTape() as tape:
        y = ops.exp(Parameter([1.0]))
        y.data[...] = 0
        loss = y.sum()
    with pytest.raises(TapeError, match=r"^exp: its output, of shape \(1,\), was changed in place after forward"):
        tape.backward(loss)


def test_gradcheck_notices_too():
    def fn(x):
        y = x.exp()
        loss = y * 2.0
        y.data[...] = 0
        return loss

    with pytest.raises(TapeError, match="mul: its input 0"):
        gradcheck(fn, np.ones(3))


def test_what_backward_does_not_need_may_be_changed():
    """A sum needs none of its inputs; a tensor that gets a new array leaves the old one as it was."""
    w = Parameter([1.0, 2.0])
    with WatchingTape() as tape:
        loss = (w + 1.0).sum() + (w * w).sum()
        w.data = w.data - 1.0
    tape.backward(loss)
    assert w.grad.tolist() == [3, 5]
