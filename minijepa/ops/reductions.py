"""Sum, mean and maximum over an axis, a tuple of axes, or all of them (axis=None)."""

import math

from minijepa.autograd import Function
from minijepa.backend import sums, xp_of


class Sum(Function):
    """y = Σ x over the axes. Each x enters y once, so dx = dy, repeated along them.

    ``ctx.kept`` is y's shape with the reduced axes at length 1, in which dy broadcasts against x.
    """

    shapes = "(*) -> (*)"

    @staticmethod
    def forward(ctx, x, *, axis=None, keepdims=False):
        y = sums(x, axis)
        ctx.shape, ctx.kept = x.shape, y.shape
        return y if keepdims else y.squeeze(axis)

    @staticmethod
    def backward(ctx, dy):
        return (xp_of(dy).broadcast_to(dy.reshape(ctx.kept), ctx.shape),)


class Mean(Function):
    """y = (1/n) Σ x over the axes, of n elements together;  dx = dy / n, repeated along them"""

    shapes = "(*) -> (*)"

    @staticmethod
    def forward(ctx, x, *, axis=None, keepdims=False):
        y = sums(x, axis)
        ctx.shape, ctx.kept = x.shape, y.shape
        ctx.n = math.prod(n for n, kept in zip(x.shape, y.shape) if kept == 1)
        if ctx.n == 0:
            raise ValueError("no elements to average")
        return (y if keepdims else y.squeeze(axis)) / ctx.n

    @staticmethod
    def backward(ctx, dy):
        dy = dy.reshape(ctx.kept) / ctx.n
        return (xp_of(dy).broadcast_to(dy, ctx.shape),)


class Max(Function):
    """y = max x over the axes.

    y changes with the element that holds the maximum and with no other: dx = [x = y] dy. If k elements tie, the maximum
    has no derivative; each of them receives dy / k, the mean of the one-sided choices.
    """

    shapes = "(*) -> (*)"

    @staticmethod
    def forward(ctx, x, *, axis=None, keepdims=False):
        y = x.max(axis=axis, keepdims=True)
        ctx.save(x, y)
        ctx.axis = axis
        return y if keepdims else y.squeeze(axis)

    @staticmethod
    def backward(ctx, dy):
        x, y = ctx.saved
        holds = (x == y).astype(x.dtype)
        return (holds * (dy.reshape(y.shape) / sums(holds, ctx.axis)),)


def _axes(axis):
    """A list of axes as the tuple that array libraries want."""
    return tuple(axis) if isinstance(axis, list) else axis


def sum(x, axis=None, keepdims=False):
    """Σ x over ``axis`` (None: all axes)."""
    return Sum.apply(x, axis=_axes(axis), keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    """The mean of x over ``axis`` (None: all axes)."""
    return Mean.apply(x, axis=_axes(axis), keepdims=keepdims)


def max(x, axis=None, keepdims=False):
    """The maximum of x over ``axis`` (None: all axes). Ties share the gradient equally."""
    return Max.apply(x, axis=_axes(axis), keepdims=keepdims)
