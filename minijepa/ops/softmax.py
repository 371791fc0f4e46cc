"""Softmax over the last axis.

Every step of the derivation: docs/backward/softmax.md.
"""

import numpy as np

from minijepa.autograd import Function
from minijepa.backend import row_sums, xp_of

# e^±40 is far enough inside float32's range (e^±87) that sums over a row, their reciprocals, and attention's products
# with values and gradients before it divides stay inside too.
SAFE = 40.0


def exp_rows(x):
    """e^(x − c) over the rows of an array, where c cancels in a softmax, in place.

    c is the row's maximum, so that exp can't overflow; or 0 if no element could make it overflow, because finding each
    row's maximum takes longer than the exponentials. (On a GPU, asking that would force a sync.)
    """
    if x.size and (xp_of(x) is not np or not max(x.max(), -x.min()) < SAFE):
        x -= x.max(axis=-1, keepdims=True)
    return xp_of(x).exp(x, out=x)


class Softmax(Function):
    """y[j] = exp(x[j]) / Σₖ exp(x[k])

    ∂y[j]/∂x[i] = y[j] ([i = j] − y[i]), because raising x[i] raises its own numerator and every denominator. So

    dx[i] = Σⱼ dy[j] y[j] ([i = j] − y[i])
          = y[i] (dy[i] − Σⱼ dy[j] y[j])
    """

    shapes = "(..., n) -> (..., n)"

    @staticmethod
    def forward(ctx, x):
        y = exp_rows(x.copy())
        y /= row_sums(y)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved
        return (y * (dy - row_sums(dy * y)),)


def softmax(x):
    """exp(x) / Σ exp(x) over the last axis: (..., n) -> (..., n), each row positive and summing to 1."""
    return Softmax.apply(x)
