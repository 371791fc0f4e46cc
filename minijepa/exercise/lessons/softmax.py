"""Softmax: a full Jacobian that is never formed."""

import numpy as np

from minijepa.autograd import Function
from minijepa.exercise.lesson import Lesson
from minijepa.gradcheck.cases import softmax_cases


class Softmax(Function):
    """y[j] = exp(x[j]) / Σₖ exp(x[k]), over the last axis

    x and y (..., n): each row is separate; within a row every x reaches every y.
    """

    shapes = "(..., n) -> (..., n)"

    @staticmethod
    def forward(ctx, x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        y = e / e.sum(axis=-1, keepdims=True)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved
        dx = y * (dy - (dy * y).sum(axis=-1, keepdims=True))
        return (dx,)


LESSON = Lesson(
    Softmax,
    page="docs/backward/softmax.md",
    asks="dx of y = softmax(x)",
    twin="softmax",
    cases=softmax_cases,
    hints=(
        "x[i] raises its own numerator, and the denominator that all share. So it reaches every y[j]: "
        "dx[i] = Σⱼ dy[j] ∂y[j]/∂x[i].",
        "Quotient rule: ∂y[j]/∂x[i] = y[j] ([i = j] − y[i]), where [i = j] is 1 for i = j, else 0.",
        "Put it in: dx[i] = Σⱼ dy[j] y[j] [i = j] − Σⱼ dy[j] y[j] y[i]. The bracket picks one term of the first sum; "
        "in the second, y[i] does not depend on j.",
        "dx[i] = y[i] (dy[i] − Σⱼ dy[j] y[j]). The sum is one number per row: keepdims=True aligns it with its row.",
    ),
    mistakes={
        ("(dy - (dy * y).sum(axis=-1, keepdims=True))", "dy"):
            "the second term, − y Σ dy y, is missing: raising x[i] also raises the denominator of every y in the row.",
        ("(dy - (dy * y).sum(axis=-1, keepdims=True))", "(1 - y) * dy"):
            "y (1 − y) dy is the Jacobian's diagonal alone, as if x[i] reached y[i] only. Through the denominator it "
            "reaches all of its row: sum over j.",
        ("(dy * y).sum(axis=-1, keepdims=True)", "dy.sum(axis=-1, keepdims=True)"):
            "the sum is over dy; it must be over dy y: each y[j] falls in proportion to itself.",
        ("(dy * y).sum(axis=-1, keepdims=True)", "(dy * y).sum()"):
            "the sum runs over all rows. Rows are independent: sum over the last axis, keepdims=True.",
        ("(dy * y).sum(axis=-1, keepdims=True)", "(dy * y).sum(axis=0)"):
            "the sum runs over axis 0, down the columns. softmax works along rows: axis=-1, keepdims=True.",
        ("(dy * y).sum(axis=-1, keepdims=True)", "(dy * y).mean(axis=-1, keepdims=True)"):
            "a mean where a sum belongs: Σⱼ dy[j] y[j] is weighted by y already.",
        ("y * (dy - (dy * y).sum(axis=-1, keepdims=True))", "y * dy - (dy * y).sum(axis=-1, keepdims=True)"):
            "the row's sum is subtracted without its factor y[i]: y multiplies both terms.",
        ("y * (dy - (dy", "(dy - (dy"):
            "the factor y in front is missing: ∂y[j]/∂x[i] = y[j] ([i = j] − y[i]).",
    },
)  # fmt: skip
