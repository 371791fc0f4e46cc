"""Layer normalisation over the last axis (Ba, Kiros & Hinton, 2016, arXiv:1607.06450).

Every step of the derivation: docs/backward/layer_norm.md.
"""

from minijepa.autograd import Function
from minijepa.backend import column_sums, row_blocks, row_dots, row_sums, xp_of
from minijepa.errors import ShapeError


class LayerNorm(Function):
    """y = w x̂ + b  with  x̂ = (x − μ) r,  μ = mean(x),  r = 1/√(mean((x − μ)²) + eps), means over the last axis

    Let g = dL/dx̂ = w dy. Each x[i] reaches L in three ways: through its own x̂[i], the mean μ, and the scale r.

    own:    dx = r g
    via μ:  ∂μ/∂x[i] = 1/n, and ∂x̂[j]/∂μ = −r for every j:
            dx −= r mean(g)
    via r:  ∂r/∂x[i] = −r³ (x[i] − μ)/n = −r² x̂[i]/n,
            dL/dr = Σⱼ g[j] (x[j] − μ) = Σⱼ g[j] x̂[j] / r:
            dx −= r x̂ mean(g x̂)

    (r depends on μ too, but Σ (x − μ) = 0, so that path adds nothing.) Together

    dx = r (g − mean(g) − x̂ mean(g x̂))
    dw = Σ dy x̂,   db = Σ dy   over all rows

    The two means are products with w: n mean(g) = Σ w dy and n mean(g x̂) = Σ w (dy x̂), where dw needs dy x̂ anyway.
    """

    shapes = "(..., n), (n), (n) -> (..., n)"

    @staticmethod
    def forward(ctx, x, w, b, *, eps):
        xp, n = xp_of(x), x.shape[-1]
        y = xp.empty(x.shape, x.dtype)
        xhat = xp.empty(x.shape, x.dtype) if ctx.recorded else y  # reuse y as scratch if nothing is recorded
        r = xp.empty((*x.shape[:-1], 1), x.dtype)
        ctx.save(xhat, r, w)
        for x_, y_, xhat_, r_ in row_blocks(x, y, xhat, r):
            centred = xp.subtract(x_, row_sums(x_) / n, out=y_)  # y_ is scratch until the last two lines
            variance = row_dots(centred, centred) / n
            r_[...] = 1 / xp.sqrt(variance + eps) + 0 * variance  # nan, not 0, where the squares overflow
            xp.multiply(centred, r_, out=xhat_)
            xp.multiply(xhat_, w, out=y_)
            y_ += b
        return y

    @staticmethod
    def backward(ctx, dy):
        xhat, r, w = ctx.saved
        xp, n = xp_of(dy), len(w)
        dx = xp.empty(dy.shape, dy.dtype)
        dw, db = xp.zeros_like(w), xp.zeros_like(w)
        for dy_, dx_, xhat_, r_ in row_blocks(dy, dx, xhat, r):
            dy_xhat = dy_ * xhat_
            dw += column_sums(dy_xhat)
            db += column_sums(dy_)
            mean_g, mean_g_xhat = row_sums(dy_, w) / n, row_sums(dy_xhat, w) / n
            xp.multiply(dy_, w, out=dx_)  # g
            dx_ -= mean_g
            dx_ -= xp.multiply(xhat_, mean_g_xhat, out=dy_xhat)
            dx_ *= r_
        return dx, dw, db


def layer_norm(x, weight, bias, eps=1e-6):
    """Each row of x (..., n) shifted and scaled to mean 0 and variance 1, times weight (n,) plus bias (n,).

    ``eps`` is added to the variance (not to the standard deviation), which divides by n, not n − 1; eps ≥ 0.
    """
    if not eps >= 0:
        raise ShapeError(f"layer_norm: eps is added to a variance and must be at least 0, got {eps}")
    return LayerNorm.apply(x, weight, bias, eps=float(eps))
