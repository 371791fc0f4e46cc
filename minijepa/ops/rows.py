"""Gathering rows by number: the embedding look-up, the selection of patches, the packing of sequences.

Every step of the derivation: docs/backward/rows.md.
"""

import math
from functools import cached_property

import numpy as np

from minijepa.autograd import Function, Tensor
from minijepa.backend import device_of, matmul, plain, to_device, to_numpy, xp_of
from minijepa.errors import ShapeError


class RowIndex:
    """Row numbers on a device, with what backward needs to know about them, computed on the host.

    ``ops.rows`` takes plain arrays too. Prefer a RowIndex for an index that is made on the host and used on a GPU: it
    is checked and sorted without synchronising.
    """

    def __init__(self, index, device=None):
        try:
            index = plain(index)
        except ValueError as error:
            raise ShapeError(f"rows: index must be whole numbers in one axis: {error}") from None
        if index.ndim != 1 or (index.dtype.kind not in "iu" and len(index)):
            raise ShapeError(f"rows: index must be whole numbers in one axis, got {index.dtype} of shape {index.shape}")
        if xp_of(index) is np:
            self.host = index = index.astype(np.intp, copy=False)  # otherwise fetched on first use
        self.array = to_device(index, device or device_of(index)).astype(np.intp, copy=False)

    @cached_property
    def host(self):
        return to_numpy(self.array)

    on_host = property(lambda self: "host" in vars(self))  # available without a GPU sync

    @cached_property
    def passes(self):
        """0..t−1 in parts in which no row number repeats: the first occurrence of each, the second, and so on."""
        order = np.argsort(self.host, kind="stable")
        ordered = self.host[order]
        rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # how often the same number occurred before
        device = device_of(self.array)
        return [to_device(order[rank == r], device) for r in range(rank.max(initial=-1) + 1)]


class Rows(Function):
    """y[t] = x[index[t]]

    Row i of x was copied to every t with index[t] = i, so each of these contributes a gradient:

        dx[i] = Σ_{t : index[t] = i} dy[t]

    (``dx[index] = dy`` would keep one of them and drop the rest; so would ``dx[index] += dy``.)

    If x has few rows (position embeddings), the sum is a product with the 0/1 matrix Sᵀ[i, t] = [index[t] = i], which
    BLAS does faster than any scatter; else it is one addition per pass of the index, in which no row repeats. Neither
    needs atomic additions, so the sum has the same bits every time.
    """

    shapes = "(n, ...) -> (t, ...)"

    @staticmethod
    def forward(ctx, x, *, index):
        ctx.index, ctx.shape = index, x.shape
        return x[index.array]

    @staticmethod
    def backward(ctx, dy):
        xp, index, n = xp_of(dy), ctx.index, ctx.shape[0]
        if n <= 256:
            selection = (xp.arange(n)[:, None] == index.array[None, :]).astype(dy.dtype)
            dx = matmul(selection, dy.reshape(len(dy), math.prod(dy.shape[1:]))).reshape(ctx.shape)
        else:
            dx = xp.zeros(ctx.shape, dy.dtype)
            for rows in index.passes:
                dx[index.array[rows]] += dy[rows]
        return (dx,)


def rows(x, index):
    """x[index]: rows of x (n, ...), in any order and any number of times, as (t, ...).

    ``index``: whole numbers (t,), each in 0..n−1, or a :class:`RowIndex` of them. Raises ShapeError otherwise
    (negative numbers, which NumPy allows, would hide mistakes). A plain index on a GPU is not checked, because that
    would force a sync: make a RowIndex from the host's array instead. Don't change an index before backward.
    """
    x = x if isinstance(x, Tensor) else Tensor(x)
    index = index if isinstance(index, RowIndex) else RowIndex(index, device_of(x.data))
    n = x.shape[0] if x.ndim else None  # the signature refuses a scalar
    if n is not None and index.on_host and len(index.host) and not 0 <= index.host.min() <= index.host.max() < n:
        raise ShapeError(f"rows: index runs from {index.host.min()} to {index.host.max()}, but x has {n} rows")
    return Rows.apply(x, index=index)


# ------------------------------------------------- index arithmetic for parts of different lengths in one packed array


def offsets_of(lengths):
    """Where each part begins, and where the last one ends: (n,) -> (n + 1,), [0, l₀, l₀ + l₁, ...]."""
    return np.concatenate([[0], np.cumsum(lengths)])


def starts_of(lengths):
    """Where each part begins: (n,) -> (n,)."""
    return np.cumsum(lengths) - lengths


def ranges(starts, lengths):
    """start, start + 1, ... start + length − 1 for each pair, concatenated: (n,), (n,) -> (Σ lengths,)."""
    return np.repeat(starts - starts_of(lengths), lengths) + np.arange(lengths.sum())
