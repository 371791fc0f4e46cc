"""Linear: the chain rule with indices, and where the transposes come from."""

from minijepa.autograd import Function
from minijepa.exercise.lesson import Lesson
from minijepa.gradcheck.cases import case, linear_cases
from minijepa.gradcheck.draws import normal


class Linear(Function):
    """y = x wᵀ + b:  y[t, o] = Σᵢ x[t, i] w[o, i] + b[o]

    x (..., i): any leading axes, which together are t. w (o, i). b (o,), or None. y (..., o).
    """

    shapes = "(..., i), (o, i), (o)? -> (..., o)"

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save(x, w)
        y = x @ w.T
        return y if b is None else y + b

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved
        rows = dy.reshape(-1, dy.shape[-1])
        dx = dy @ w
        dw = rows.T @ x.reshape(-1, x.shape[-1])
        db = rows.sum(axis=0)
        return dx, dw, db


LESSON = Lesson(
    Linear,
    page="docs/backward/linear.md",
    asks="dx, dw, db of y = x wᵀ + b",
    call=lambda op, x, w, b=None: op.apply(x, w, b),
    twin="linear",
    cases=lambda fn: [case("(4, 3), 2 outputs", fn, normal(4, 3), normal(2, 3), normal(2)), *linear_cases(fn)],
    hints=(
        "Write the chain rule with indices. x[t, i] reaches L through every output of its row: "
        "dx[t, i] = Σₒ dy[t, o] ∂y[t, o]/∂x[t, i].",
        "∂y[t, o]/∂x[t, i] = w[o, i], so dx[t, i] = Σₒ dy[t, o] w[o, i]. The sum runs over the last axis of dy and "
        "the first of w: that is a matrix product, and nothing is transposed.",
        "w[o, i] is used in every row: dw[o, i] = Σₜ dy[t, o] x[t, i]. To sum over t, the first axis of both, the left "
        "factor of a matrix product is transposed: dw = dyᵀ x.",
        "b[o] is added in every row: db[o] = Σₜ dy[t, o].",
        "If x has three axes, the first two together are t: dy.reshape(-1, dy.shape[-1]) makes rows of them; do the "
        "same with x. dx needs no reshape: @ works on the last two axes.",
    ),
    mistakes={
        ("dy @ w", "dy @ w.T"):
            "w is transposed. dx[t, i] = Σₒ dy[t, o] w[o, i] sums over w's first axis, and dy @ w does that.",
        ("rows.sum(axis=0)", "rows.mean(axis=0)"):
            "the mean over the rows instead of their sum. Each row contributes its own gradient, and gradients add.",
        ("rows.sum(axis=0)", "rows.sum()"):
            "the sum runs over all of dy. b[o] is added to column o alone: sum over rows only.",
        ("rows.sum(axis=0)", "rows[0]"):
            "the gradient of one row only. b is added in every row, so its gradient is the sum over rows.",
        ("rows.T @ x.reshape(-1, x.shape[-1])", "rows.T @ x.reshape(-1, x.shape[-1]) / len(rows)"):
            "the mean over the rows instead of their sum. If the loss is a mean, dy already has that factor.",
    },
)  # fmt: skip
