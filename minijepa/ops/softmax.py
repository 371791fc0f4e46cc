"""Softmax over the last axis."""

from minijepa.autograd import Function
from minijepa.backend import row_sums, xp_of


def softmax_rows(x):
    """softmax over the last axis of an array; the row's maximum is subtracted so that exp can't overflow."""
    y = x - x.max(axis=-1, keepdims=True)
    xp_of(y).exp(y, out=y)
    y /= row_sums(y)
    return y


class Softmax(Function):
    """y[j] = e^x[j] / Σₖ e^x[k]

    ∂y[j]/∂x[i] = y[j] ([i = j] − y[i]), because raising x[i] raises its own numerator and everybody's denominator. So

    dx[i] = Σⱼ dy[j] y[j] ([i = j] − y[i])
          = y[i] (dy[i] − Σⱼ dy[j] y[j])
    """

    shapes = "(..., n) -> (..., n)"

    @staticmethod
    def forward(ctx, x):
        y = softmax_rows(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved
        return (y * (dy - row_sums(dy * y)),)


def softmax(x):
    """e^x / Σ e^x over the last axis: (..., n) -> (..., n), each row positive and summing to 1."""
    return Softmax.apply(x)
