"""Multi-head self-attention on packed sequences (Vaswani et al., 2017, arXiv:1706.03762, section 3.2)."""

import math

import numpy as np

from minijepa.autograd import Function
from minijepa.backend import matmul, row_sums, xp_of
from minijepa.errors import ShapeError
from minijepa.ops.matmul import transposed
from minijepa.ops.softmax import softmax_rows
from minijepa.ragged import offsets_of


class Packing:
    """How the rows of a packed matrix divide into sequences: the first lengths[0] rows are the first, and so on.

    ``lengths``: whole numbers ≥ 1. ``offsets`` (S + 1,): sequence s is rows offsets[s] to offsets[s + 1].
    ``runs``: (first row, number of sequences, their length) of neighbouring sequences of equal length, which are
    computed together; sort sequences by length to have few runs.
    """

    def __init__(self, lengths):
        lengths = np.asarray(lengths)
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or not len(lengths) or lengths.min() < 1:
            raise ShapeError("a packing needs the lengths of at least one sequence, whole numbers of at least 1")
        self.lengths = lengths.astype(np.int64)
        self.offsets = offsets_of(self.lengths)
        first = np.flatnonzero(np.diff(self.lengths, prepend=-1))
        counts = np.diff(first, append=len(self.lengths))
        self.runs = [(int(self.offsets[i]), int(n), int(self.lengths[i])) for i, n in zip(first, counts)]

    total = property(lambda self: int(self.offsets[-1]))

    def __repr__(self):
        return f"Packing({self.lengths.tolist()})"


def _split(rows, start, count, length, parts, heads):
    """Rows of a run as ``parts`` views (count, heads, length, d): [q, k, v] of qkv, or [y] of an output."""
    run = rows[start : start + count * length].reshape(count, length, parts, heads, -1)
    return [run[:, :, i].transpose(0, 2, 1, 3) for i in range(parts)]


class Attention(Function):
    """In each sequence and head, with q, k, v (L, d) and s = 1/√d:   P = softmax(s q kᵀ),   y = P v

    y = P v is a matrix product:                 dv = Pᵀ dy,   dP = dy vᵀ
    P is a softmax of the rows of A = s q kᵀ:    dA = P (dP − Σⱼ dP[:, j] P[:, j])
    A = s q kᵀ is a matrix product again:        dq = s dA k,  dk = s dAᵀ q

    Tokens of different sequences never meet, so there is nothing to mask. P is saved; q, k, v are views of the input.
    """

    shapes = "(t, e) -> (t, o)"

    @staticmethod
    def forward(ctx, qkv, *, packing, num_heads):
        y = xp_of(qkv).empty((len(qkv), qkv.shape[1] // 3), qkv.dtype)
        scale = 1 / math.sqrt(y.shape[1] // num_heads)
        probabilities = []
        for run in packing.runs:
            q, k, v = _split(qkv, *run, 3, num_heads)
            scores = matmul(q, transposed(k))
            scores *= scale
            p = softmax_rows(scores)
            (out,) = _split(y, *run, 1, num_heads)
            out[...] = matmul(p, v)
            probabilities.append(p)
        ctx.save(qkv, *probabilities)
        ctx.packing, ctx.heads, ctx.scale = packing, num_heads, scale
        return y

    @staticmethod
    def backward(ctx, dy):
        qkv, *probabilities = ctx.saved
        dy = xp_of(dy).ascontiguousarray(dy)
        dqkv = xp_of(qkv).empty(qkv.shape, qkv.dtype)  # in C order whatever qkv's is, so that _split gives views
        for run, p in zip(ctx.packing.runs, probabilities):
            q, k, v = _split(qkv, *run, 3, ctx.heads)
            dq, dk, dv = _split(dqkv, *run, 3, ctx.heads)
            (out,) = _split(dy, *run, 1, ctx.heads)
            dv[...] = matmul(transposed(p), out)
            dp = matmul(out, transposed(v))
            dp -= row_sums(dp * p)
            dp *= p
            dp *= ctx.scale  # now dA, with the scale that both of its uses need
            dq[...] = matmul(dp, k)
            dk[...] = matmul(transposed(dp), q)
        return (dqkv,)


def attention(qkv, packing, num_heads):
    """softmax(q kᵀ / √d) v in each sequence and head: packed qkv (T, 3D) -> packed (T, D).

    ``qkv``: for each token row q, k and v one behind another, each of them its heads one behind another (timm's order).
    ``packing``: a :class:`Packing`, or the sequences' lengths, which must sum to T. ``num_heads`` divides D.
    """
    if not isinstance(packing, Packing):
        packing = Packing(packing)
    if qkv.ndim != 2 or num_heads < 1 or qkv.shape[1] % (3 * num_heads):
        raise ShapeError(f"attention: takes (T, 3D) with D divisible by {num_heads} heads, was given {qkv.shape}")
    if packing.total != len(qkv):
        raise ShapeError(f"attention: the packing's lengths sum to {packing.total}, but qkv has {len(qkv)} rows")
    return Attention.apply(qkv, packing=packing, num_heads=num_heads)
