"""Numbers for the cases, the same at every import because all come from one stream; and memory layouts."""

import numpy as np

from minijepa.backend import rng

generator = rng(0, "gradcheck cases")


def normal(*shape):
    return generator.standard_normal(shape)


def positive(*shape):
    return generator.uniform(0.5, 2.0, shape)


def signed(*shape):
    """Of both signs and away from 0."""
    return positive(*shape) * generator.choice([-1.0, 1.0], shape)


def distinct(*shape):
    """Multiples of 0.1 without ties, so that a maximum stays the maximum under a finite difference."""
    return 0.1 * generator.permutation(np.prod(shape, dtype=int)).reshape(shape)


def transposed(x):
    """The same values in Fortran order: contiguous along the first axis."""
    return np.ascontiguousarray(x.T).T


def strided(x):
    """The same values, every second element of a longer row."""
    return np.repeat(x, 2, axis=-1)[..., ::2]


def backwards(x):
    """The same values with negative strides along every axis."""
    flip = (slice(None, None, -1),) * x.ndim
    return np.ascontiguousarray(x[flip])[flip]
