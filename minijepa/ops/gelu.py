"""GELU, the Gaussian error linear unit, in its tanh form (Hendrycks & Gimpel, 2016, arXiv:1606.08415, section 2)."""

import math

from minijepa.autograd import Function
from minijepa.backend import xp_of

C = math.sqrt(2 / math.pi)
A = 0.044715


class Gelu(Function):
    """y = ½ z (1 + t)  with  t = tanh(u),  u = C (z + A z³),  z = x + bias

    t' = (1 − t²) u',  u' = C (1 + 3A z²), so by the product rule

    dz = dy [½ (1 + t) + ½ z (1 − t²) C (1 + 3A z²)]
    dx = dz,   dbias = Σ dz over all rows
    """

    shapes = "(..., n), (n)? -> (..., n)"

    @staticmethod
    def forward(ctx, x, bias):
        z = x if bias is None else x + bias
        t = z * z  # from here on in place: fewer passes over memory, the same formula
        t *= C * A
        t += C
        t *= z
        xp_of(t).tanh(t, out=t)
        ctx.save(z, t)
        y = t + 1
        y *= z
        y *= 0.5
        return y

    @staticmethod
    def backward(ctx, dy):
        z, t = ctx.saved
        slope = z * z
        slope *= 3 * A * C
        slope += C  # u'
        slope *= z
        slope *= 1 - t * t
        slope += t
        slope += 1
        slope *= 0.5
        slope *= dy
        return slope, slope if ctx.needs[1] else None


def gelu(x, bias=None):
    """½ z (1 + tanh(√(2/π) (z + 0.044715 z³))) with z = x + bias: x (..., n), bias (n,) or None -> (..., n).

    Adding the bias of the linear layer before it here saves a pass over the widest array of the network.
    """
    return Gelu.apply(x, bias)
