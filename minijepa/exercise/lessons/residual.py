"""The residual block: a value that is used twice receives the sum of two gradients."""

import numpy as np

from minijepa.autograd import Function
from minijepa.exercise.lesson import Lesson
from minijepa.gradcheck.cases import case
from minijepa.gradcheck.draws import backwards, normal, strided, transposed


class Residual(Function):
    """y = x + a w2ᵀ  with  a = tanh(h)  and  h = x w1ᵀ

    The second half of a transformer's block, without its norm and biases, and with tanh (whose slope is 1 − tanh²)
    instead of GELU. x and y (..., n). w1 (m, n). a and h (..., m). w2 (n, m).
    """

    shapes = "(..., n), (m, n), (n, m) -> (..., n)"

    @staticmethod
    def forward(ctx, x, w1, w2):
        a = np.tanh(x @ w1.T)
        ctx.save(x, a, w1, w2)
        return x + a @ w2.T

    @staticmethod
    def backward(ctx, dy):
        x, a, w1, w2 = ctx.saved
        dh = dy @ w2 * (1 - a * a)
        dx = dy + dh @ w1
        dw1 = dh.reshape(-1, dh.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        dw2 = dy.reshape(-1, dy.shape[-1]).T @ a.reshape(-1, a.shape[-1])
        return dx, dw1, dw2


LESSON = Lesson(
    Residual,
    page="docs/backward/tape.md",
    asks="dx, dw1, dw2 of y = x + tanh(x w1ᵀ) w2ᵀ",
    cases=lambda fn: [
        case("(4, 3), 2 inside", fn, normal(4, 3), normal(2, 3), normal(3, 2)),
        case("square", fn, normal(3, 3), normal(3, 3), normal(3, 3)),
        case("one row (3,)", fn, normal(3), normal(4, 3), normal(3, 4)),
        case("three axes", fn, normal(2, 3, 4), normal(5, 4), normal(4, 5)),
        case("lengths 1", fn, normal(1, 1), normal(1, 1), normal(1, 1)),
        case("scale 1e-2", fn, 1e-2 * normal(3, 4), normal(2, 4), normal(4, 2)),
        case("transposed, strided", fn, transposed(normal(3, 4)), strided(normal(2, 4)), transposed(normal(4, 2))),
        case("negative strides", fn, backwards(normal(3, 4)), backwards(normal(2, 4)), backwards(normal(4, 2))),
        case("two blocks", lambda x, w1, w2: fn(fn(x, w1, w2), w1, w2), normal(2, 3), normal(2, 3), normal(3, 2)),
    ],
    hints=(
        "Walk back from y. y is a sum of two parts, and dy goes to both unchanged. One of them is the linear layer "
        "a w2ᵀ: as in the exercise `linear`, da = dy w2 and dw2 = dyᵀ a (rows together, if there are more axes).",
        "a = tanh(h), element by element: dh = da (1 − a²).",
        "h = x w1ᵀ is a linear layer again: dw1 = dhᵀ x, and dh w1 is what comes back to x along this path.",
        "x is used twice: in h, and directly in y. Both paths add: dx = dy + dh w1.",
    ),
    mistakes={
        ("dy + dh @ w1", "dh @ w1"):
            "the path past the branch is missing: x is used twice, and y = x + … hands x its dy. Both paths add.",
        ("dy + dh @ w1", "dy"):
            "the path through the branch is missing: x is used twice, and h = x w1ᵀ brings a second gradient. "
            "Both paths add.",
        (" * (1 - a * a)", ""):
            "the slope of tanh, 1 − a², is missing between a and h.",
        ("(1 - a * a)", "(1 - a)"):
            "the slope of tanh is 1 − tanh², which is 1 − a².",
        ("(1 - a * a)", "a * (1 - a)"):
            "a (1 − a) is the slope of the logistic function; that of tanh is 1 − a².",
        ("dy @ w2", "dy @ w2.T"):
            "w2 is transposed: da = dy w2, as dx is in the exercise `linear`.",
        ("dh @ w1", "dh @ w1.T"):
            "w1 is transposed: what comes back through h = x w1ᵀ is dh w1, as dx is in the exercise `linear`.",
        ("a.reshape(-1, a.shape[-1])", "(x @ w1.T).reshape(-1, a.shape[-1])"):
            "h where a belongs: w2 multiplies a = tanh(h), so dw2 = dyᵀ a.",
    },
)  # fmt: skip
