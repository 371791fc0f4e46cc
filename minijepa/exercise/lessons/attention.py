"""Attention: two matrix products with a softmax between them."""

import math

import numpy as np

from minijepa.autograd import Function
from minijepa.exercise.lesson import Lesson
from minijepa.gradcheck.cases import case
from minijepa.gradcheck.draws import backwards, normal, strided, transposed


class Attention(Function):
    """y = P v  with  P = softmax(A), row by row,  and  A = q kᵀ / √d

    One head of one sequence. q (n, d): n queries. k (m, d) and v (m, e): m keys and their values. A and P (n, m).
    y (n, e). (The package's own does all heads of all sequences at once.)
    """

    shapes = "(n, d), (m, d), (m, e) -> (n, e)"

    @staticmethod
    def forward(ctx, q, k, v):
        a = q @ k.T / math.sqrt(q.shape[1])
        p = np.exp(a - a.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        ctx.save(q, k, v, p)
        return p @ v

    @staticmethod
    def backward(ctx, dy):
        q, k, v, p = ctx.saved
        dv = p.T @ dy
        dp = dy @ v.T
        da = p * (dp - (dp * p).sum(axis=1, keepdims=True))
        dq = da @ k / math.sqrt(q.shape[1])
        dk = da.T @ q / math.sqrt(q.shape[1])
        return dq, dk, dv


LESSON = Lesson(
    Attention,
    page="docs/backward/attention.md",
    asks="dq, dk, dv of y = softmax(q kᵀ/√d) v",
    twin="attention",
    cases=lambda fn: [
        case("(4, 2), (3, 2), (3, 5)", fn, normal(4, 2), normal(3, 2), normal(3, 5)),
        case("square", fn, normal(3, 3), normal(3, 3), normal(3, 3)),
        case("one query", fn, normal(1, 2), normal(4, 2), normal(4, 3)),
        case("one key", fn, normal(3, 2), normal(1, 2), normal(1, 3)),
        case("width 1", fn, normal(3, 1), normal(4, 1), normal(4, 1)),
        case("self-attention", lambda x: fn(x, x, x), normal(3, 2)),
        case("scale 1e-2", fn, 1e-2 * normal(3, 4), 1e-2 * normal(2, 4), 1e-2 * normal(2, 4)),
        case("scale 10, softmax saturated", fn, 10 * normal(3, 4), 10 * normal(2, 4), normal(2, 4)),
        case("transposed, strided", fn, transposed(normal(3, 4)), strided(normal(2, 4)), transposed(normal(2, 3))),
        case("negative strides", fn, backwards(normal(3, 4)), backwards(normal(2, 4)), backwards(normal(2, 3))),
    ],
    hints=(
        "Walk back from y = P v, a matrix product: y[i, e] = Σⱼ P[i, j] v[j, e]. So dv = Pᵀ dy, and the gradient of "
        "P is dP = dy vᵀ. Check their shapes: (m, e) and (n, m).",
        "P is a softmax of each row of A, and you have its backward: dA = P (dP − Σⱼ dP[:, j] P[:, j]), the sum over "
        "axis 1 with keepdims=True.",
        "A = q kᵀ / √d is a matrix product again: dq = dA k / √d. The factor 1/√d that forward has, backward has too.",
        "k is the transposed factor: dk[j] = Σᵢ dA[i, j] q[i] / √d, so dk = dAᵀ q / √d.",
    ),
    mistakes={
        (" / math.sqrt(q.shape[1])", ""):
            "the factor 1/√d is missing: forward divides A by √d, so what comes back through A is divided too.",
        (" / math.sqrt(q.shape[1])", " / q.shape[1]"):
            "divided by d instead of √d.",
        ("p * (dp - (dp * p).sum(axis=1, keepdims=True))", "dp"):
            "softmax's backward is left out: between dP and dA there is dA = P (dP − Σⱼ dP P).",
        ("(dp - (dp * p).sum(axis=1, keepdims=True))", "dp"):
            "softmax's second term, − P Σⱼ dP P, is missing: raising one score lowers the other weights of its row.",
        ("(dp * p).sum(axis=1, keepdims=True)", "dp * p"):
            "softmax's sum is missing: a score moves every weight of its row, so sum dP P over axis 1, keepdims=True.",
        ("(dp * p).sum(axis=1, keepdims=True)", "(dp * p).sum(axis=0)"):
            "softmax's sum runs down the columns. A row of P sums to 1: sum over axis 1, keepdims=True.",
        ("(dp * p).sum(axis=1, keepdims=True)", "dp.sum(axis=1, keepdims=True)"):
            "softmax's sum is over dP; it must be over dP P.",
        ("da.T @ q", "da @ q"):
            "dA is not transposed: dk[j] = Σᵢ dA[i, j] q[i] / √d sums over dA's first axis.",
        ("p.T @ dy", "p @ dy"):
            "P is not transposed: dv[j] = Σᵢ P[i, j] dy[i] sums over P's first axis.",
        ("da @ k /", "da @ q /"):
            "q where k belongs: A = q kᵀ / √d changes with q at the rate k.",
    },
)  # fmt: skip
