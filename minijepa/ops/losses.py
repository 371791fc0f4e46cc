"""Losses: the squared distance of I-JEPA, its smooth-L1 variant, and cross-entropy.

Every step of the derivation: docs/backward/cross_entropy.md.
"""

import operator

import numpy as np

from minijepa.autograd import Function
from minijepa.backend import plain, xp_of
from minijepa.errors import ShapeError


class L2Loss(Function):
    """y = (1/n) Σₜ Σ_d (p[t, d] − q[t, d])²;   dp = (2/n) (p − q) dy,   dq = −dp"""

    shapes = "(t, d), (t, d) -> ()"

    @staticmethod
    def forward(ctx, p, q, *, count):
        ctx.count = row_count("l2_loss", count, p)
        difference = p - q
        ctx.save(difference)
        return (difference * difference).sum() / ctx.count

    @staticmethod
    def backward(ctx, dy):
        (difference,) = ctx.saved
        dp = difference * (dy * (2 / ctx.count))
        return dp, -dp if ctx.needs[1] else None


class SmoothL1Loss(Function):
    """y = (1/n) Σ h(p − q),   h(u) = ½ u²/β where |u| < β, and |u| − ½ β elsewhere

    h'(u) = u/β inside, sign(u) outside: u/β clipped to ±1. So dp = clip((p − q)/β, −1, 1) dy / n,  dq = −dp.
    """

    shapes = "(t, d), (t, d) -> ()"

    @staticmethod
    def forward(ctx, p, q, *, beta, count):
        rows = row_count("smooth_l1_loss", count, p)
        if not p.shape[1]:
            raise ShapeError(f"smooth_l1_loss: a mean needs at least one element, was given {p.shape}")
        ctx.beta, ctx.count = beta, rows * p.shape[1]
        u = p - q
        ctx.save(u)
        size = abs(u)
        h = xp_of(p).where(size < beta, u * u * (0.5 / beta), size - 0.5 * beta)
        return h.sum() / ctx.count

    @staticmethod
    def backward(ctx, dy):
        (u,) = ctx.saved
        dp = xp_of(u).clip(u / ctx.beta, -1, 1) * (dy / ctx.count)
        return dp, -dp if ctx.needs[1] else None


class CrossEntropy(Function):
    """y = −(1/N) Σₙ ln P[n, cₙ]   with   P = softmax(x),   ln P[n, c] = x[n, c] − ln Σⱼ exp(x[n, j])

    ∂/∂x[n, j] of −x[n, cₙ] + ln Σ exp(x) is −[j = cₙ] + P[n, j], so   dx = (P − onehot(c)) dy / N
    """

    shapes = "(N, C) -> ()"

    @staticmethod
    def forward(ctx, x, *, labels):
        xp = xp_of(x)
        ctx.labels = _class_numbers(labels, x)
        shifted = x - x.max(axis=-1, keepdims=True)
        log_p = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
        ctx.save(log_p)
        return -log_p[xp.arange(len(x)), ctx.labels].mean()

    @staticmethod
    def backward(ctx, dy):
        (log_p,) = ctx.saved
        xp = xp_of(log_p)
        dx = xp.exp(log_p)
        dx[xp.arange(len(dx)), ctx.labels] -= 1
        dx *= dy / len(dx)
        return (dx,)


def row_count(op, count, predictions):
    """The divisor of a sum of losses, as a Python number: a NumPy one would turn float32 into float64."""
    try:
        count = len(predictions) if count is None else operator.index(count)
    except TypeError:
        raise ShapeError(f"{op}: count is a number of rows, a whole number; got {count!r}") from None
    if count < 1:
        raise ShapeError(f"{op}: a mean needs at least one row, was given {predictions.shape} and count {count}")
    return count


def _class_numbers(labels, logits):
    """``labels`` as an array on the logits' device, checked as far as possible without synchronising a GPU."""
    labels = xp_of(logits).asarray(plain(labels))
    if labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu" or not len(labels):
        raise ShapeError(
            f"cross_entropy: takes logits (N, C) and whole-number labels (N,), N ≥ 1, was given {logits.shape} and "
            f"{labels.dtype} of shape {labels.shape}"
        )
    classes = logits.shape[1]
    if xp_of(labels) is np and not 0 <= labels.min() <= labels.max() < classes:
        raise ShapeError(f"cross_entropy: labels run from {labels.min()} to {labels.max()} for {classes} classes")
    return labels


def l2_loss(predictions, targets, count=None):
    """Σ over D of the squared error, mean over patches: (T, D), (T, D) -> scalar. The specification's section 7.

    ``count``: the divisor, T if None. A batch computed in parts passes the whole batch's number of target patches, so
    that the parts' losses and gradients add up to the batch's.
    """
    return L2Loss.apply(predictions, targets, count=count)


def smooth_l1_loss(predictions, targets, beta=1.0, count=None):
    """Mean over elements of ½u²/β (|u| < β) or |u| − ½β, u = p − q: (T, D), (T, D) -> scalar. Meta's I-JEPA, train.py.

    ``count``: the number of patches to divide by (times D), T if None; see :func:`l2_loss`.
    """
    if not beta > 0:
        raise ShapeError(f"smooth_l1_loss: beta must be above 0, got {beta}")
    return SmoothL1Loss.apply(predictions, targets, beta=float(beta), count=count)


def cross_entropy(logits, labels):
    """−mean ln softmax(logits)[n, labels[n]]: logits (N, C), whole-number labels (N,) in 0..C−1 -> scalar."""
    return CrossEntropy.apply(logits, labels=labels)
