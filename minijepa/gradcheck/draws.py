"""Numbers for the cases, and ways to lay them out in memory: the same at every import, for all come from one stream."""

import numpy as np

from minijepa.backend import rng

generator = rng(0, "gradcheck cases")


def normal(*shape):
    return generator.standard_normal(shape)


def positive(*shape):
    return generator.uniform(0.5, 2.0, shape)


def signed(*shape):
    """Of both signs, and away from 0."""
    return positive(*shape) * generator.choice([-1.0, 1.0], shape)


def distinct(*shape):
    """Multiples of 0.1 without ties, so that a maximum stays the maximum under a finite difference."""
    return 0.1 * generator.permutation(np.prod(shape, dtype=int)).reshape(shape)


def transposed(x):
    """The same values in Fortran order: the first axis is the one that lies together in memory."""
    return np.ascontiguousarray(x.T).T


def strided(x):
    """The same values, each second element of a longer row."""
    return np.repeat(x, 2, axis=-1)[..., ::2]


def backwards(x):
    """The same values with negative strides along every axis."""
    flip = (slice(None, None, -1),) * x.ndim
    return np.ascontiguousarray(x[flip])[flip]
