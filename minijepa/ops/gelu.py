"""GELU, the Gaussian error linear unit, in its tanh form (Hendrycks & Gimpel, 2016, arXiv:1606.08415, section 2).

Every step of the derivation: docs/backward/gelu.md.
"""

import math

from minijepa.autograd import Function
from minijepa.backend import row_blocks, xp_of

C = math.sqrt(2 / math.pi)
A = 0.044715


class Gelu(Function):
    """y = z s  with  s = ½ (1 + tanh u),  u = C (z + A z³),  z = x + bias

    ds/du = ½ (1 − tanh² u) = ½ (1 + tanh u) (1 − tanh u) = 2 s (1 − s), so by the chain rule

    s' = 2 s (1 − s) u'  with  u' = C (1 + 3A z²)

    and by the product rule, because z (1 − s) = z − y,

    g = dy/dz = s + z s' = s + 2u' (z − y) s

    dx = g dy,   dbias = Σ g dy over all rows

    For very negative z, s is exactly 0, so (z − y) s comes first: u' z³ would overflow, and infinity · 0 is nan.

    g depends on z alone. It is computed together with y, while z is in the cache, and is all that backward needs.
    """

    shapes = "(..., n), (n)? -> (..., n)"

    @staticmethod
    def forward(ctx, x, bias):
        xp = xp_of(x)
        y = xp.empty(x.shape, x.dtype)
        g = xp.empty(x.shape, x.dtype) if ctx.recorded else None
        ctx.save(g)
        for x_, y_, g_ in row_blocks(x, y, g):  # in place from here on, to save passes over memory
            z = x_ if bias is None else x_ + bias
            w = xp.multiply(z, z, out=g_)
            w *= C * A  # CA z²
            s = w + C
            s *= z  # u = C z + CA z³
            xp.tanh(s, out=s)
            s += 1
            s *= 0.5  # s
            xp.multiply(z, s, out=y_)
            if g is not None:  # the derivative, which backward multiplies by
                w *= 6
                w += 2 * C  # 2u' = 2C + 6CA z²
                d = z - y_
                d *= s  # (z − y) s
                w *= d
                w += s
        return y

    @staticmethod
    def backward(ctx, dy):
        (g,) = ctx.saved
        dx = g * dy
        return dx, dx if ctx.needs[1] else None


def gelu(x, bias=None):
    """½ z (1 + tanh(√(2/π) (z + 0.044715 z³))) with z = x + bias: x (..., n), bias (n,) or None -> (..., n).

    Adding the preceding linear layer's bias here saves a pass over the widest array of the network.
    """
    return Gelu.apply(x, bias)
