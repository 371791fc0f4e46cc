"""GELU: product rule and chain rule, element by element."""

import math

import numpy as np

from minijepa.autograd import Function
from minijepa.exercise.lesson import Lesson
from minijepa.gradcheck.cases import case, unary

C = math.sqrt(2 / math.pi)
A = 0.044715


class Gelu(Function):
    """y = x s  with  s = ½ (1 + tanh u)  and  u = C (x + A x³)

    x and y (...): element by element. C and A are the two constants above.
    """

    shapes = "(...) -> (...)"

    @staticmethod
    def forward(ctx, x):
        s = 0.5 * (1 + np.tanh(C * (x + A * x * x * x)))
        ctx.save(x, s)
        return x * s

    @staticmethod
    def backward(ctx, dy):
        x, s = ctx.saved
        du = C * (1 + 3 * A * x * x)
        ds = 2 * s * (1 - s) * du
        dx = (s + x * ds) * dy
        return (dx,)


LESSON = Lesson(
    Gelu,
    page="docs/backward/gelu.md",
    asks="dx of y = GELU(x)",
    twin="gelu",
    cases=lambda fn: [*unary(fn), case("both tails", fn, np.linspace(-8, 8, 17))],
    hints=(
        "y is a product of x and s, and s depends on x too. Product rule: y' = s + x s'. At the end the chain rule "
        "multiplies by dy.",
        "s' goes through u: s' = ½ (1 − tanh² u) u', because the slope of tanh is 1 − tanh².",
        "u' = C (1 + 3 A x²).",
        "tanh u need not be computed again: s = ½ (1 + tanh u) gives tanh u = 2s − 1, and "
        "½ (1 − tanh² u) = 2 s (1 − s). So dx = (s + x · 2 s (1 − s) u') dy.",
    ),
    mistakes={
        ("(s + x * ds)", "s"):
            "the product rule's second term, x s', is missing: y = x s, and s depends on x too.",
        ("(s + x * ds)", "(x * ds)"):
            "the product rule's first term, s, is missing: y = x s, and x itself changes too.",
        ("(s + x * ds)", "(s + ds)"):
            "in the product rule's second term the factor x is missing: (x s)' = s + x s'.",
        (" * du", ""):
            "the chain rule's inner factor u' is missing: s depends on u, and u on x, at the rate C (1 + 3 A x²).",
        ("3 * A", "A"):
            "u' has A x² where it must have 3 A x²: the slope of x³ is 3x².",
        ("C * (1", "(1"):
            "u' lacks the factor C: u = C (x + A x³).",
        ("2 * s * (1 - s)", "s * (1 - s)"):
            "s (1 − s) is the slope of the logistic function of u. s = ½ (1 + tanh u) is that of 2u: its slope is "
            "2 s (1 − s).",
        ("2 * s * (1 - s)", "(1 - s * s)"):
            "the slope of tanh is 1 − tanh², but s is not tanh u: s = ½ (1 + tanh u). In terms of s it is 2 s (1 − s).",
    },
)  # fmt: skip
