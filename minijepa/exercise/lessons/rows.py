"""Rows: a gather's backward is a scatter that adds."""

import numpy as np

from minijepa.autograd import Function
from minijepa.exercise.lesson import Lesson
from minijepa.gradcheck.cases import case, rows_cases
from minijepa.gradcheck.draws import normal


class Rows(Function):
    """y[t] = x[index[t]]

    x (n, ...): n rows. index (t,): whole numbers, in any order, some more than once, some not at all. y (t, ...).
    """

    shapes = "(n, ...) -> (t, ...)"

    @staticmethod
    def forward(ctx, x, *, index):
        ctx.index, ctx.shape = index, x.shape
        return x[index]

    @staticmethod
    def backward(ctx, dy):
        index, shape = ctx.index, ctx.shape
        dx = np.zeros(shape, dy.dtype)
        np.add.at(dx, index, dy)
        return (dx,)


LESSON = Lesson(
    Rows,
    page="docs/backward/rows.md",
    asks="dx of y = x[index], some rows picked twice",
    twin="rows",
    call=lambda op, x, index: op.apply(x, index=index),
    cases=lambda fn: [
        case("repeated", lambda x: fn(x, np.array([1, 1, 3, 1, 0])), normal(4, 2)), *rows_cases(fn)
    ],
    hints=(
        "y[t] is a copy of row index[t]. Chain rule: dx[i] = Σₜ dy[t] ∂y[t]/∂x[i], and ∂y[t]/∂x[i] is 1 where "
        "index[t] = i, else 0.",
        "So dx[i] is the sum of all dy[t] with index[t] = i. A row that was picked three times gets three gradients, "
        "added; one that was not picked gets 0.",
        "Start from zeros of x's shape and dy's dtype: np.zeros(shape, dy.dtype). Then add each dy[t] to row "
        "index[t]: first as a loop over t.",
        "NumPy has this loop in one call: np.add.at(dx, index, dy). (`dx[index] += dy` is not the same: it adds once "
        "to a row that occurs twice.)",
    ),
    mistakes={
        ("np.add.at(dx, index, dy)", "dx[index] = dy"):
            "a row that was picked more than once keeps one gradient and loses the others. `dx[index] = dy` writes "
            "only the last one, and so does `dx[index] += dy`: NumPy reads all rows, adds, then writes all rows. "
            "Every copy must be added: np.add.at, or a loop over t.",
        ("np.add.at(dx, index, dy)",
         "np.add.at(dx, index, dy); dx /= np.maximum(np.bincount(index, minlength=len(dx)), 1)"
         ".reshape(-1, *[1] * (dx.ndim - 1))"):
            "the mean over the copies of a row instead of their sum. Each copy reaches L, and the paths add.",
        ("np.add.at(dx, index, dy)", "np.add.at(dx, index, 1)"):
            "that counts how often each row was picked. Add dy[t] to row index[t], not 1.",
        ("np.add.at(dx, index, dy)", "dx[: len(dy)] += dy[: len(dx)]"):
            "dy[t] was added to row t. It belongs to the row that y[t] was copied from: index[t].",
        ("np.add.at(dx, index, dy)", "dx = dy[index % len(dy)]"):
            "dy was gathered: dy[index]. Backward goes the other way: it adds dy[t] to row index[t].",
    },
)  # fmt: skip
