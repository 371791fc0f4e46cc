"""LayerNorm: one input, three paths to the loss."""

import numpy as np

from minijepa.autograd import Function
from minijepa.exercise.lesson import Lesson
from minijepa.gradcheck.cases import layer_norm_cases


class LayerNorm(Function):
    """y = w x̂ + b  with  x̂ = (x − μ) r,  μ = mean(x),  r = 1/√(mean((x − μ)²) + eps), means over the last axis

    x and y (..., n): each row is separate. w and b (n,): shared by all rows. r (..., 1): one number per row.
    """

    shapes = "(..., n), (n), (n) -> (..., n)"

    @staticmethod
    def forward(ctx, x, w, b, *, eps):
        centred = x - x.mean(axis=-1, keepdims=True)
        r = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
        xhat = centred * r
        ctx.save(xhat, r, w)
        return w * xhat + b

    @staticmethod
    def backward(ctx, dy):
        xhat, r, w = ctx.saved
        g = w * dy
        mean_g = g.mean(axis=-1, keepdims=True)
        mean_g_xhat = (g * xhat).mean(axis=-1, keepdims=True)
        dx = r * (g - mean_g - xhat * mean_g_xhat)
        dw = (dy * xhat).reshape(-1, len(w)).sum(axis=0)
        db = dy.reshape(-1, len(w)).sum(axis=0)
        return dx, dw, db


LESSON = Lesson(
    LayerNorm,
    page="docs/backward/layer_norm.md",
    asks="dx, dw, db of y = w (x − μ) r + b",
    twin="layer_norm",
    call=lambda op, x, w, b, eps=1e-6: op.apply(x, w, b, eps=eps),
    cases=layer_norm_cases,
    hints=(
        "Begin with what is easy. b is added in every row: db is the sum of dy over all rows. w multiplies x̂ in every "
        "row: dw is the sum of dy x̂. Run the judge: two of three are right.",
        "For dx, first the gradient of x̂: call it g. y = w x̂ + b gives g = w dy. Then "
        "dx[i] = Σⱼ g[j] ∂x̂[j]/∂x[i], and x̂[j] = (x[j] − μ) r has x[i] in three places: x[j] itself (for j = i), μ, r.",
        "First path, x[j] itself: r g[i]. Second path, μ: ∂μ/∂x[i] = 1/n, and every x̂[j] falls by r times that: "
        "− r (1/n) Σⱼ g[j] = − r mean(g).",
        "Third path, r: with v the variance, r = (v + eps)^(−1/2) gives ∂r/∂x[i] = −½ r³ ∂v/∂x[i], and "
        "∂v/∂x[i] = (2/n) (x[i] − μ). So ∂r/∂x[i] = −(r²/n) x̂[i].",
        "Its sum: Σⱼ g[j] (x[j] − μ) ∂r/∂x[i], where x[j] − μ = x̂[j]/r. That is − r x̂[i] (1/n) Σⱼ g[j] x̂[j] "
        "= − r x̂[i] mean(g x̂).",
        "Together dx = r (g − mean(g) − x̂ mean(g x̂)), the means over the last axis with keepdims=True.",
    ),
    mistakes={
        (" - xhat * mean_g_xhat", ""):
            "the third term, − x̂ mean(g x̂), is missing: r depends on x too. Each x[i] reaches L in three ways: "
            "through its own x̂[i], the mean μ, and the scale r.",
        (" - mean_g -", " -"):
            "the second term, − mean(g), is missing: μ depends on every x of the row.",
        ("(g - mean_g - xhat * mean_g_xhat)", "g"):
            "only the first of three paths: μ and r were treated as constants, but both depend on x.",
        ("g = w * dy", "g = dy"):
            "w is missing: from y to x̂ the gradient is multiplied by w, g = w dy.",
        ("r * (g", "(g"):
            "the factor r in front is missing: x̂ = (x − μ) r moves by r when x moves by 1.",
        ("xhat * mean_g_xhat", "mean_g_xhat"):
            "the third term lacks its factor x̂[i]: ∂r/∂x[i] = −(r²/n) x̂[i].",
        ("- mean_g - xhat", "- mean_g + xhat"):
            "the third term has the wrong sign: r falls as the row grows, ∂r/∂x[i] = −(r²/n) x̂[i].",
        ("(g * xhat).mean(axis=-1, keepdims=True)", "(dy * xhat).mean(axis=-1, keepdims=True)"):
            "the third term has dy where g = w dy belongs.",
        ("(g * xhat).mean(axis=-1, keepdims=True)", "(g * xhat)"):
            "the third term lacks its mean: x[i] moves r, and r moves every x̂[j] of the row. Sum over j.",
        (".mean(axis=-1, keepdims=True)", ".sum(axis=-1, keepdims=True)"):
            "sums where means belong: the 1/n of μ and of the variance are missing.",
        (".mean(axis=-1, keepdims=True)", ".mean()"):
            "the means are taken over all rows. Each row has its own: axis=-1, keepdims=True.",
        (".mean(axis=-1, keepdims=True)", ".mean(axis=0)"):
            "the means are taken over the rows. LayerNorm's are taken within each row: axis=-1, keepdims=True.",
        ("(dy * xhat)", "(g * xhat)"):
            "there is one w too many: y = w x̂ + b changes with w at the rate x̂, so dw is the sum of dy x̂, not g x̂.",
        ("(dy * xhat).reshape", "dy.reshape"):
            "the factor x̂ is missing: y = w x̂ + b changes with w at the rate x̂.",
        (".sum(axis=0)", ".mean(axis=0)"):
            "the mean over the rows instead of their sum. Each row contributes its own gradient, and gradients add.",
    },
)  # fmt: skip
