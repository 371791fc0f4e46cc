"""Layer normalisation over the last axis (Ba, Kiros & Hinton, 2016, arXiv:1607.06450)."""

from minijepa.autograd import Function
from minijepa.backend import row_sums, xp_of


class LayerNorm(Function):
    """y = w x̂ + b  with  x̂ = (x − μ) r,  μ = mean(x),  r = 1/√(mean((x − μ)²) + eps), means over the last axis

    Let g = dL/dx̂ = w dy. Each x[i] reaches L by three ways: its own x̂[i], the mean μ, and the scale r.

    own:    dx = r g
    by μ:   ∂μ/∂x[i] = 1/n and every x̂[j] falls by r:                 dx −= r mean(g)
    by r:   ∂r/∂x[i] = −r³ (x[i] − μ)/n = −r² x̂[i]/n, and dL/dr = Σⱼ g[j] (x[j] − μ) = Σⱼ g[j] x̂[j] / r:
                                                                       dx −= r x̂ mean(g x̂)
    (r moves through x − μ, whose sum is 0, so μ adds nothing by this way.) Together

    dx = r (g − mean(g) − x̂ mean(g x̂))
    dw = Σ dy x̂,   db = Σ dy   over all rows
    """

    shapes = "(..., n), (n), (n) -> (..., n)"

    @staticmethod
    def forward(ctx, x, w, b, *, eps):
        n = x.shape[-1]
        xhat = x - row_sums(x) / n
        r = 1 / xp_of(x).sqrt(row_sums(xhat * xhat) / n + eps)
        xhat *= r
        ctx.save(xhat, r, w)
        y = xhat * w
        y += b
        return y

    @staticmethod
    def backward(ctx, dy):
        xhat, r, w = ctx.saved
        n = dy.shape[-1]
        dx = None
        if ctx.needs[0]:
            g = dy * w
            dx = g - row_sums(g) / n
            dx -= xhat * (row_sums(g * xhat) / n)
            dx *= r
        return dx, dy * xhat if ctx.needs[1] else None, dy


def layer_norm(x, weight, bias, eps=1e-6):
    """Each row of x (..., n) shifted and scaled to mean 0 and variance 1, times weight (n,) plus bias (n,).

    ``eps`` is added to the variance (not to the standard deviation), which divides by n.
    """
    return LayerNorm.apply(x, weight, bias, eps=float(eps))
