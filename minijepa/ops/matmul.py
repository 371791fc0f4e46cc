"""Matrix products: ``matmul`` (batched, broadcast) and ``linear``.

Every step of the derivation: docs/backward/linear.md.
"""

import math

from minijepa import backend
from minijepa.autograd import Function, as_tensors
from minijepa.ops.shaping import reshape


def transposed(x):
    """Each matrix transposed, as a view: the last two axes swapped."""
    return x.swapaxes(-1, -2)


def _rows(x):
    """(..., n) as a matrix (rows, n)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


class Matmul(Function):
    """y = a b, over the last two axes:  y[i, j] = Σₖ a[i, k] b[k, j]

    Each a[i, k] meets every column j, so da[i, k] = Σⱼ dy[i, j] b[k, j], which is da = dy bᵀ; in the same way
    db[k, j] = Σᵢ a[i, k] dy[i, j], which is db = aᵀ dy. (The shapes allow no other product.)

    A vector is a matrix of one row (left factor) or one column (right factor); y drops that axis of length 1.
    So for y = a v: da = dy vᵀ, dv = aᵀ dy;  for y = u b: du = dy bᵀ, db = uᵀ dy;  for y = u · v: du = dy v, dv = dy u.
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
    dw[o, i] = Σₜ dy[t, o] x[t, i]       dw = dyᵀ x
    db[o]    = Σₜ dy[t, o]

    (t: all leading axes of x together)
    """

    shapes = "(..., i), (o, i), (o)? -> (..., o)"

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save(x, w)
        y = backend.matmul(_rows(x), w.T)  # 2-D: one product, not one for each leading index
        if b is not None:
            y += b
        return y.reshape(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved
        rows = _rows(dy)
        dx = backend.matmul(rows, w).reshape(x.shape) if ctx.needs[0] else None
        dw = backend.matmul(rows.T, _rows(x)) if ctx.needs[1] else None
        db = backend.column_sums(rows) if ctx.needs[2] else None
        return dx, dw, db


def matmul(a, b):
    """a b over the last two axes, the others broadcast: (..., n, k), (..., k, m) -> (..., n, m).

    Vectors as in NumPy: (..., n, k), (k,) -> (..., n);  (k,), (..., k, m) -> (..., m);  (k,), (k,) -> scalar.
    """
    (a, b), _ = as_tensors(Matmul, (a, b))  # first, because a list takes its dtype from the other factor
    if a is None or b is None or (a.ndim != 1 and b.ndim != 1):
        return Matmul.apply(a, b)
    row, column = a.ndim == 1, b.ndim == 1
    if a.shape[-1:] != b.shape[-2:][:1]:
        Matmul.signature.fail("matmul", (a.shape, b.shape), "k differs; a vector must have k elements")
    y = Matmul.apply(reshape(a, (1, -1)) if row else a, reshape(b, (-1, 1)) if column else b)
    *leading, n, m = y.shape
    return reshape(y, (*leading, *([] if row else [n]), *([] if column else [m])))


def linear(x, weight, bias=None):
    """x @ weight.T + bias: x (..., i), weight (o, i), bias (o,) or None -> (..., o)."""
    return Linear.apply(x, weight, bias)
