"""Gathering rows by number: the embedding look-up, the selection of patches, the packing of sequences."""

import math

import numpy as np

from minijepa.autograd import Function
from minijepa.backend import matmul, xp_of
from minijepa.errors import ShapeError


class Rows(Function):
    """y[t] = x[index[t]]

    Row n of x was copied to every t with index[t] = n, so every one of these brings a gradient:

        dx[n] = Σ_{t : index[t] = n} dy[t]

    (``dx[index] = dy`` would keep one of them and drop the rest; so would ``dx[index] += dy``.)
    """

    shapes = "(n, ...) -> (t, ...)"

    @staticmethod
    def forward(ctx, x, *, index):
        ctx.index, ctx.shape = _row_numbers(index, x), x.shape
        return x[ctx.index]

    @staticmethod
    def backward(ctx, dy):
        return (add_rows(dy, ctx.index, ctx.shape[0]),)


def _row_numbers(index, x):
    """``index`` as an array on x's device, checked as far as that is possible without waiting for a GPU."""
    index = xp_of(x).asarray(index)
    if index.ndim != 1 or (index.dtype.kind not in "iu" and len(index)):
        raise ShapeError(f"rows: index must be whole numbers in one axis, got {index.dtype} of shape {index.shape}")
    if xp_of(x) is np and len(index) and not 0 <= index.min() <= index.max() < len(x):
        raise ShapeError(f"rows: index runs from {index.min()} to {index.max()}, but x has {len(x)} rows")
    return index.astype(np.intp, copy=False)


def add_rows(dy, index, n):
    """Σ of the rows of dy that have the same index: (t, ...) -> (n, ...).

    As a matrix product with the 0/1 matrix S[n, t] = [index[t] = n] when x has few rows (position embeddings), which
    BLAS does faster than any scatter; else by one pass for each repetition, within which no index stands twice.
    """
    xp = xp_of(dy)
    t = len(index)
    if n <= 256 or xp is not np:
        selection = (xp.arange(n)[:, None] == index[None, :]).astype(dy.dtype)
        return matmul(selection, dy.reshape(t, math.prod(dy.shape[1:]))).reshape(n, *dy.shape[1:])
    dx = np.zeros((n, *dy.shape[1:]), dy.dtype)
    for repetition in _repetitions(index):
        dx[index[repetition]] += dy[repetition]
    return dx


def _repetitions(index):
    """Split 0..t−1 into parts in which no index stands twice: the first occurrence of each, the second, and so on."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(index) else np.zeros(0, np.int64)
    counts = np.diff(np.r_[starts, len(index)])
    rank = np.arange(len(index)) - np.repeat(starts, counts)  # how often the same index stood before
    return [order[rank == r] for r in range(counts.max(initial=0))]


def rows(x, index):
    """x[index]: rows of x (n, ...), in any order and any number of times, as (t, ...).

    ``index``: whole numbers (t,), each in 0..n−1. Raises ShapeError otherwise (NumPy's negative numbers would hide
    mistakes, and CuPy does not check at all).
    """
    return Rows.apply(x, index=index)
