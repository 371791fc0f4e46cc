"""Element-by-element operations, with broadcasting. The engine sums gradients over broadcast axes.

Every step of the derivation: docs/backward/broadcasting.md.
"""

import numbers

from minijepa.autograd import Function
from minijepa.backend import xp_of
from minijepa.errors import DtypeError


class Add(Function):
    """y = a + b;  da = dy,  db = dy"""

    shapes = "(...), (...) -> (...)"

    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, dy):
        return dy, dy


class Sub(Function):
    """y = a − b;  da = dy,  db = −dy"""

    shapes = "(...), (...) -> (...)"

    @staticmethod
    def forward(ctx, a, b):
        return a - b

    @staticmethod
    def backward(ctx, dy):
        return dy, -dy if ctx.needs[1] else None


class Mul(Function):
    """y = a b;  da = b dy,  db = a dy"""

    shapes = "(...), (...) -> (...)"

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx, dy):
        a, b = ctx.saved
        return b * dy if ctx.needs[0] else None, a * dy if ctx.needs[1] else None


class Div(Function):
    """y = a / b;  da = dy / b,  db = −a dy / b² = −y da"""

    shapes = "(...), (...) -> (...)"

    @staticmethod
    def forward(ctx, a, b):
        y = a / b
        ctx.save(y, b)
        return y

    @staticmethod
    def backward(ctx, dy):
        y, b = ctx.saved
        da = dy / b
        return da, -y * da if ctx.needs[1] else None


class Neg(Function):
    """y = −x;  dx = −dy"""

    shapes = "(...) -> (...)"

    @staticmethod
    def forward(ctx, x):
        return -x

    @staticmethod
    def backward(ctx, dy):
        return (-dy,)


class Power(Function):
    """y = xⁿ for a number n;  dx = n xⁿ⁻¹ dy, which is 0 everywhere for n = 0"""

    shapes = "(...) -> (...)"

    @staticmethod
    def forward(ctx, x, *, exponent):
        ctx.save(x)
        ctx.exponent = exponent
        return x**exponent

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved
        n = ctx.exponent
        if n == 0:  # 0 · x⁻¹ would be nan at x = 0
            return (dy * 0.0,)
        return (n * x ** (n - 1) * dy,)


class Exp(Function):
    """y = eˣ;  dx = eˣ dy = y dy"""

    shapes = "(...) -> (...)"

    @staticmethod
    def forward(ctx, x):
        y = xp_of(x).exp(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved
        return (y * dy,)


class Log(Function):
    """y = ln x;  dx = dy / x"""

    shapes = "(...) -> (...)"

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return xp_of(x).log(x)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved
        return (dy / x,)


class Sqrt(Function):
    """y = √x;  dx = dy / (2 √x) = dy / (2 y)"""

    shapes = "(...) -> (...)"

    @staticmethod
    def forward(ctx, x):
        y = xp_of(x).sqrt(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved
        return (dy / (2 * y),)


class Tanh(Function):
    """y = tanh x;  dx = (1 − tanh² x) dy = (1 − y²) dy"""

    shapes = "(...) -> (...)"

    @staticmethod
    def forward(ctx, x):
        y = xp_of(x).tanh(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved
        return ((1 - y * y) * dy,)


def add(a, b):
    """a + b, broadcast."""
    return Add.apply(a, b)


def sub(a, b):
    """a − b, broadcast."""
    return Sub.apply(a, b)


def mul(a, b):
    """a b, element by element, broadcast."""
    return Mul.apply(a, b)


def div(a, b):
    """a / b, element by element, broadcast."""
    return Div.apply(a, b)


def neg(x):
    """−x."""
    return Neg.apply(x)


def power(x, exponent):
    """xⁿ, element by element, for a Python number n. A negative x needs an integer n."""
    if not isinstance(exponent, numbers.Real):
        raise DtypeError(f"power: the exponent must be a number, got {type(exponent).__name__}; xʸ is exp(y log(x))")
    return Power.apply(x, exponent=float(exponent))


def exp(x):
    """eˣ, element by element."""
    return Exp.apply(x)


def log(x):
    """Natural logarithm, element by element; x must be positive."""
    return Log.apply(x)


def sqrt(x):
    """√x, element by element; x must be positive where a gradient is wanted."""
    return Sqrt.apply(x)


def tanh(x):
    """Hyperbolic tangent, element by element."""
    return Tanh.apply(x)
