"""RMSNorm: LayerNorm without the mean, and an operation that the package does not have."""

import numpy as np

from minijepa.autograd import Function
from minijepa.exercise.lesson import Lesson
from minijepa.gradcheck.cases import case
from minijepa.gradcheck.draws import backwards, normal, strided, transposed


class RMSNorm(Function):
    """y = w x̂  with  x̂ = x r,  r = 1/√(mean(x²) + eps), the mean over the last axis

    x and y (..., n): each row is separate. w (n,): shared by all rows. r (..., 1): one number per row.
    """

    shapes = "(..., n), (n) -> (..., n)"

    @staticmethod
    def forward(ctx, x, w, *, eps):
        r = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
        xhat = x * r
        ctx.save(xhat, r, w)
        return w * xhat

    @staticmethod
    def backward(ctx, dy):
        xhat, r, w = ctx.saved
        g = w * dy
        dx = r * (g - xhat * (g * xhat).mean(axis=-1, keepdims=True))
        dw = (dy * xhat).reshape(-1, len(w)).sum(axis=0)
        return dx, dw


LESSON = Lesson(
    RMSNorm,
    page="docs/own_op.md",
    asks="dx, dw of y = w x / √mean(x²)",
    call=lambda op, x, w: op.apply(x, w, eps=1e-6),
    cases=lambda fn: [
        case("(2, 3)", fn, normal(2, 3), normal(3)),
        case("one row (5,)", fn, normal(5), normal(5)),
        case("three axes", fn, normal(2, 3, 4), normal(4)),
        case("rows of length 1", fn, normal(3, 1), normal(1)),
        case("scale 1e-3, eps counts", fn, 1e-3 * normal(3, 5), normal(5)),
        case("scale 1e2", fn, 1e2 * normal(3, 5), normal(5)),
        case("transposed, strided", fn, transposed(normal(3, 5)), strided(normal(5))),
        case("negative strides", fn, backwards(normal(3, 5)), backwards(normal(5))),
        case("residual", lambda x, w: x + fn(x, w), normal(3, 5), normal(5)),
    ],
    hints=(
        "dw as in LayerNorm: w multiplies x̂ in every row, so dw is the sum of dy x̂ over all rows.",
        "With g = w dy, dx[i] = Σⱼ g[j] ∂(x[j] r)/∂x[i]. x[i] is in two places: x[j] itself (for j = i), and r.",
        "r = (mean(x²) + eps)^(−1/2) gives ∂r/∂x[i] = −½ r³ (2/n) x[i] = −(r²/n) x̂[i].",
        "Insert: dx[i] = r g[i] − Σⱼ g[j] x[j] (r²/n) x̂[i], and x[j] r = x̂[j]. So "
        "dx = r (g − x̂ mean(g x̂)).",
    ),
    mistakes={
        (" - xhat * (g * xhat).mean(axis=-1, keepdims=True)", ""):
            "the second term, − x̂ mean(g x̂), is missing: r depends on x too.",
        ("(g - xhat *", "(g - g.mean(axis=-1, keepdims=True) - xhat *"):
            "that is LayerNorm's gradient: − mean(g) comes from subtracting the mean, which RMSNorm does not do.",
        ("g = w * dy", "g = dy"):
            "w is missing: from y to x̂ the gradient is multiplied by w, g = w dy.",
        ("r * (g", "(g"):
            "the factor r in front is missing: x̂ = x r moves by r when x moves by 1.",
        ("xhat * (g * xhat)", "(g * xhat)"):
            "the second term lacks its factor x̂[i]: ∂r/∂x[i] = −(r²/n) x̂[i].",
        ("g - xhat", "g + xhat"):
            "the second term has the wrong sign: r falls as the row grows, ∂r/∂x[i] = −(r²/n) x̂[i].",
        ("(g * xhat).mean(axis=-1, keepdims=True)", "(g * xhat)"):
            "the second term lacks its mean: x[i] moves r, and r moves every x̂[j] of the row. Sum over j.",
        (".mean(axis=-1, keepdims=True)", ".sum(axis=-1, keepdims=True)"):
            "a sum where a mean belongs: the 1/n of mean(x²) is missing.",
        ("(dy * xhat)", "(g * xhat)"):
            "there is one w too many: y = w x̂ changes with w at the rate x̂, so dw is the sum of dy x̂, not of g x̂.",
    },
)  # fmt: skip
