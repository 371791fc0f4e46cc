"""Numbers for the figures, all of them computed by the package."""

import numpy as np

from minijepa import Parameter, Tape
from minijepa.backend import rng


def draws(name):
    """Numbers of one decimal, for what is drawn must be what a reader computes again."""
    generator = rng(0, f"figure {name}")
    return lambda *shape: np.round(generator.standard_normal(shape), 1)


def gradients(fn, dy, *arrays):
    """(y, the gradient of each array) of a function of tensors, by the tape."""
    tensors = [Parameter(a) for a in arrays]
    with Tape() as tape:
        y = fn(*tensors)
    tape.backward(y, np.broadcast_to(np.asarray(dy, np.float64), y.shape))
    return y.data, *(t.grad for t in tensors)
