"""Matrix products: ``matmul`` (batched, broadcast) and ``linear``.

Every step of the derivation: docs/backward/linear.md.
"""

from minijepa import backend, kernels
from minijepa.autograd import Function


def transposed(x):
    """The last two axes exchanged, as a view: the transpose of each matrix."""
    return x.swapaxes(-1, -2)


class Matmul(Function):
    """y = a b, over the last two axes:  y[i, j] = Σₖ a[i, k] b[k, j]

    Each a[i, k] meets every column j, so da[i, k] = Σⱼ dy[i, j] b[k, j], which is da = dy bᵀ; in the same way
    db[k, j] = Σᵢ a[i, k] dy[i, j], which is db = aᵀ dy. (The shapes allow no other product.)
    """

    shapes = "(..., n, k), (..., k, m) -> (..., n, m)"

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return backend.matmul(a, b)

    @staticmethod
    def backward(ctx, dy):
        a, b = ctx.saved
        da = backend.matmul(dy, transposed(b)) if ctx.needs[0] else None
        db = backend.matmul(transposed(a), dy) if ctx.needs[1] else None
        return da, db


class Linear(Function):
    """y = x wᵀ + b:  y[t, o] = Σᵢ x[t, i] w[o, i] + b[o]

    dx[t, i] = Σₒ dy[t, o] w[o, i]       dx = dy w
    dw[o, i] = Σₜ dy[t, o] x[t, i]       dw = dyᵀ x      (all leading axes of x together are t)
    db[o]    = Σₜ dy[t, o]
    """

    shapes = "(..., i), (o, i), (o)? -> (..., o)"

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save(x, w)
        y = backend.matmul(x.reshape(-1, x.shape[-1]), w.T)  # 2-D: one product, not one for each leading index
        if b is not None:
            y += b
        return y.reshape(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved
        rows = dy.reshape(-1, dy.shape[-1])
        dx = backend.matmul(rows, w).reshape(x.shape) if ctx.needs[0] else None
        dw = backend.matmul(rows.T, x.reshape(-1, x.shape[-1])) if ctx.needs[1] else None
        db = kernels.sum_columns(rows) if ctx.needs[2] else None
        return dx, dw, db


def matmul(a, b):
    """a b over the last two axes, the others broadcast: (..., n, k), (..., k, m) -> (..., n, m)."""
    return Matmul.apply(a, b)


def linear(x, weight, bias=None):
    """x @ weight.T + bias: x (..., i), weight (o, i), bias (o,) or None -> (..., o)."""
    return Linear.apply(x, weight, bias)
