"""GELU, the Gaussian error linear unit, in its tanh form (Hendrycks & Gimpel, 2016, arXiv:1606.08415, section 2)."""

import math

import numpy as np

from minijepa.autograd import Function
from minijepa.backend import xp_of

C = math.sqrt(2 / math.pi)
A = 0.044715


class Gelu(Function):
    """y = ½ z (1 + tanh u)  with  u = C (z + A z³),  z = x + bias

    tanh u = (1 − e^−2u) / (1 + e^−2u), so ½ (1 + tanh u) = 1 / (1 + e^−2u) = s, the logistic function of 2u, and

    y = z s

    s' = s (1 − s) · 2u'  with  2u' = 2C (1 + 3A z²), so by the product rule

    dz = dy [s + z s (1 − s) 2u'] = dy s [1 + z (1 − s) 2u']
    dx = dz,   dbias = Σ dz over all rows
    """

    shapes = "(..., n), (n)? -> (..., n)"

    @staticmethod
    def forward(ctx, x, bias):
        z = x if bias is None else x + bias
        s = z * z  # from here on in place: fewer passes over memory, the same formula
        s *= -2 * C * A
        s -= 2 * C
        s *= z  # −2u
        with np.errstate(over="ignore"):  # far below zero e^−2u becomes infinite, and s rightly 0
            xp_of(s).exp(s, out=s)
        s += 1
        xp_of(s).reciprocal(s, out=s)
        ctx.save(z, s)
        return z * s

    @staticmethod
    def backward(ctx, dy):
        z, s = ctx.saved
        slope = z * z
        slope *= 6 * C * A
        slope += 2 * C  # 2u'
        slope *= z
        slope *= 1 - s
        slope += 1
        slope *= s
        slope *= dy
        return slope, slope if ctx.needs[1] else None


def gelu(x, bias=None):
    """½ z (1 + tanh(√(2/π) (z + 0.044715 z³))) with z = x + bias: x (..., n), bias (n,) or None -> (..., n).

    Adding the bias of the linear layer before it here saves a pass over the widest array of the network.
    """
    return Gelu.apply(x, bias)
