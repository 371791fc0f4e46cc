"""GELU, the Gaussian error linear unit, in its tanh form (Hendrycks & Gimpel, 2016, arXiv:1606.08415, section 2)."""

import math

import numpy as np

from minijepa.autograd import Function
from minijepa.backend import row_blocks, xp_of

C = math.sqrt(2 / math.pi)
A = 0.044715


class Gelu(Function):
    """y = ½ z (1 + tanh u)  with  u = C (z + A z³),  z = x + bias

    tanh u = (1 − e^−2u) / (1 + e^−2u), so ½ (1 + tanh u) = 1 / (1 + e^−2u) = s, the logistic function of 2u, and

    y = z s

    s' = s (1 − s) 2u'  with  2u' = 2C (1 + 3A z²), so by the product rule

    g = dy/dz = s + z s (1 − s) 2u' = s [1 + (z − y) 2u'],  because z (1 − s) = z − y

    dx = g dy,   dbias = Σ g dy over all rows

    g is a function of z alone. It is made together with y, while z is in the cache, and is all that backward needs.
    """

    shapes = "(..., n), (n)? -> (..., n)"

    @staticmethod
    def forward(ctx, x, bias):
        xp = xp_of(x)
        y = xp.empty(x.shape, x.dtype)
        g = xp.empty(x.shape, x.dtype) if any(ctx.needs) else None
        for x_, y_, g_ in row_blocks(x, y, g):
            z = x_ if bias is None else x_ + bias
            w = z * z  # from here on in place: few passes over memory, the formulas above
            w *= -2 * C * A
            s = w - 2 * C
            s *= z  # −2u
            with np.errstate(over="ignore"):  # far below zero e^−2u becomes infinite, and s rightly 0
                xp.exp(s, out=s)
            s += 1
            xp.reciprocal(s, out=s)
            xp.multiply(z, s, out=y_)
            if g is not None:
                w *= 3
                w -= 2 * C  # −2u'
                w *= y_ - z
                w += 1
                xp.multiply(w, s, out=g_)
        ctx.save(g)
        return y

    @staticmethod
    def backward(ctx, dy):
        (g,) = ctx.saved
        dx = g * dy
        return dx, dx if ctx.needs[1] else None


def gelu(x, bias=None):
    """½ z (1 + tanh(√(2/π) (z + 0.044715 z³))) with z = x + bias: x (..., n), bias (n,) or None -> (..., n).

    Adding the bias of the linear layer before it here saves a pass over the widest array of the network.
    """
    return Gelu.apply(x, bias)
