"""Broadcasting: what forward copied, backward sums."""

from minijepa.autograd import Function
from minijepa.exercise.lesson import Lesson
from minijepa.gradcheck.cases import binary, case
from minijepa.gradcheck.draws import normal


class Multiply(Function):
    """y = a b, element by element, with broadcasting: an a or b of fewer or shorter axes is repeated along them.

    a and b: any shapes that broadcast. y: the broadcast shape. da must have a's shape and db b's.
    (For the package's own operations the engine does the second half of this. Here "(*)" tells it not to.)
    """

    shapes = "(*), (*) -> (*)"

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx, dy):
        a, b = ctx.saved
        found = []
        for x, gradient in ((a, b * dy), (b, a * dy)):
            added = tuple(range(gradient.ndim - x.ndim))
            gradient = gradient.sum(axis=added)
            stretched = tuple(i for i, length in enumerate(x.shape) if length == 1)
            gradient = gradient.sum(axis=stretched, keepdims=True)
            found.append(gradient)
        da, db = found
        return da, db


LESSON = Lesson(
    Multiply,
    page="docs/backward/broadcasting.md",
    asks="da, db of y = a b, a or b broadcast",
    twin="mul",
    cases=lambda fn: [*binary(fn)[:1], case("row to matrix", fn, normal(2, 3), normal(3)), *binary(fn)[1:]],
    hints=(
        "First forget broadcasting: a and b have the same shape. Element by element, ∂y/∂a = b and ∂y/∂b = a, and the "
        "chain rule multiplies by dy.",
        "Now b has shape (3,) and a has (2, 3): y[i, j] = a[i, j] b[j]. b[j] was copied into every row and reaches L "
        "through each of its copies: db[j] = Σᵢ a[i, j] dy[i, j]. So a * dy must be summed over the axis that "
        "broadcasting added.",
        "Added axes are in front: (a * dy).ndim − b.ndim of them. Summed, they disappear: "
        "gradient.sum(axis=tuple(range(added))).",
        "An axis of length 1 that was stretched is summed too, but it stays, with length 1: keepdims=True. b.shape "
        "says which axes they are. (Summing over an axis that has length 1 in dy too changes nothing.)",
        "Both inputs can be broadcast at once, (3, 1) with (1, 4): do the same for a, with b * dy.",
    ),
    mistakes={
        ("((a, b * dy), (b, a * dy))", "((a, a * dy), (b, b * dy))"):
            "the factors are swapped: y = a b changes with a at the rate b, so da needs b and db needs a.",
        ("((a, b * dy), (b, a * dy))", "((a, dy), (b, dy))"):
            "that is the gradient of a + b. y = a b changes with a at the rate b: multiply dy by it.",
        ("gradient.sum(axis=added)", "gradient.mean(axis=added)"):
            "the mean over the copies instead of their sum. Each copy reaches L on its own, and the paths add.",
        ("gradient.sum(axis=stretched, keepdims=True)", "gradient.mean(axis=stretched, keepdims=True)"):
            "the mean over the copies instead of their sum. Each copy reaches L on its own, and the paths add.",
        ("gradient = gradient.sum(axis=stretched, keepdims=True)", "pass"):
            "axes of length 1 that were stretched are not summed: along them there are copies too. Sum with "
            "keepdims=True, so that the axis stays.",
        ("keepdims=True", "keepdims=False"):
            "the right sum, but the stretched axis is gone: it had length 1 and must have it again. keepdims=True.",
    },
)  # fmt: skip
