"""Cross-entropy: a loss whose gradient is simpler than its parts'."""

import numpy as np

from minijepa.autograd import Function
from minijepa.exercise.lesson import Lesson
from minijepa.gradcheck.cases import cross_entropy_cases


class CrossEntropy(Function):
    """y = −(1/N) Σₙ ln P[n, labels[n]]  with  P = softmax(x), row by row:  ln P[n, c] = x[n, c] − ln Σⱼ exp(x[n, j])

    x (N, C): a row of scores for each of N examples. labels (N,): its class, 0 to C − 1. y is a scalar, and so is dy.
    """

    shapes = "(N, C) -> ()"

    @staticmethod
    def forward(ctx, x, *, labels):
        shifted = x - x.max(axis=-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        ctx.save(log_p)
        ctx.labels = labels
        return -log_p[np.arange(len(x)), labels].mean()

    @staticmethod
    def backward(ctx, dy):
        (log_p,) = ctx.saved
        labels = ctx.labels
        dx = np.exp(log_p)
        dx[np.arange(len(dx)), labels] -= 1
        dx = dx * (dy / len(dx))
        return (dx,)


LESSON = Lesson(
    CrossEntropy,
    page="docs/backward/cross_entropy.md",
    asks="dx of y = mean(−ln softmax(x)[label])",
    twin="cross_entropy",
    call=lambda op, x, labels: op.apply(x, labels=labels),
    cases=cross_entropy_cases,
    hints=(
        "One row's loss is −x[c] + ln Σⱼ exp(x[j]), with c its label. Differentiate it with respect to x[j]: the first "
        "part gives −1 for j = c, else 0.",
        "The second part: ∂/∂x[j] ln Σ exp(x) = exp(x[j]) / Σ exp(x) = P[j]. Together P[j] − [j = c].",
        "P is exp(log_p), which forward saved. Subtract 1 at the label of each row: "
        "dx[np.arange(len(dx)), labels] -= 1.",
        "The loss is the mean over N rows, so each row gets 1/N of it; and the chain rule multiplies by dy, a scalar.",
    ),
    mistakes={
        (" / len(dx)", ""):
            "the 1/N of the mean is missing: each of N rows has an N-th of the loss.",
        ("dx[np.arange(len(dx)), labels] -= 1", "pass"):
            "the term of the label, − [j = c], is missing: the loss is −x[c] + ln Σ exp(x), and this is the slope of "
            "its second part only.",
        ("dx = np.exp(log_p)", "dx = np.zeros_like(log_p)"):
            "the term of the sum, P, is missing: the loss is −x[c] + ln Σ exp(x), and this is the slope of its first "
            "part only.",
        ("dx[np.arange(len(dx)), labels] -= 1", "dx[:, labels] -= 1"):
            "dx[:, labels] takes these columns in every row. Row n has its own label: dx[np.arange(N), labels].",
        ("dx[np.arange(len(dx)), labels] -= 1", "dx -= 1"):
            "1 was subtracted everywhere. It belongs to one element per row, the label's: [j = c].",
        ("-= 1", "+= 1"):
            "the term of the label has the wrong sign: the loss falls when the label's score rises, P − [j = c].",
        ("np.exp(log_p)", "log_p.copy()"):
            "ln P where P belongs: forward saved the logarithms, and P = exp(log_p).",
        ("dy / len(dx)", "dy / dx.size"):
            "divided by N C instead of N: the loss is a mean over rows, not over elements.",
    },
)  # fmt: skip
