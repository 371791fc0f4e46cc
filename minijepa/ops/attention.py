"""Multi-head self-attention on packed sequences (Vaswani et al., 2017, arXiv:1706.03762, section 3.2)."""

import math

import numpy as np

from minijepa.autograd import Function
from minijepa.backend import matmul, row_dots, row_sums, xp_of
from minijepa.errors import ShapeError
from minijepa.ops.matmul import transposed
from minijepa.ops.softmax import exp_rows
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
    """In each sequence and head, with q, k, v (L, d) and s = 1/√d:

        A = s q kᵀ,   E = exp(A − c),   r = 1 / Σⱼ E[:, j],   y = r (E v)          (so that P = r E = softmax(A))

    y = P v is a matrix product:            dv = Pᵀ dy = Eᵀ g  with  g = r dy,   and   dP = dy vᵀ
    P is a softmax of the rows of A:        dA = P (dP − Σⱼ dP[:, j] P[:, j]).  That sum is
                                            Σⱼ Σₑ dy[:, e] v[j, e] P[:, j] = Σₑ dy[:, e] y[:, e],  so with P = r E
                                            dA = E (g vᵀ − Σₑ g[:, e] y[:, e])
    A = s q kᵀ is a matrix product again:   dq = s dA k,   dk = s dAᵀ q

    r and s multiply arrays of (L, d), not of (L, L): P itself is never made. Tokens of different sequences never meet,
    so there is nothing to mask. E, r and y are saved; q, k, v are views of the input. (The same rearrangement as in
    Dao et al., "FlashAttention", 2022, arXiv:2205.14135, appendix B.)
    """

    shapes = "(t, e) -> (t, o)"

    @staticmethod
    def forward(ctx, qkv, *, packing, num_heads):
        xp = xp_of(qkv)
        y = xp.empty((len(qkv), qkv.shape[1] // 3), qkv.dtype)
        scale = 1 / math.sqrt(y.shape[1] // num_heads)
        saved = []
        for run in packing.runs:
            q, k, v = _split(qkv, *run, 3, num_heads)
            (y_,) = _split(y, *run, 1, num_heads)
            e = exp_rows(matmul(q * scale, transposed(k)))
            r = 1 / row_sums(e)
            matmul(e, v, out=y_)
            y_ *= r
            saved += e, r
        ctx.save(qkv, y, *saved)
        ctx.packing, ctx.heads, ctx.scale = packing, num_heads, scale
        return y

    @staticmethod
    def backward(ctx, dy):
        qkv, y, *saved = ctx.saved
        dqkv = xp_of(qkv).empty(qkv.shape, qkv.dtype)
        for run, e, r in zip(ctx.packing.runs, saved[::2], saved[1::2]):
            q, k, v = _split(qkv, *run, 3, ctx.heads)
            dq, dk, dv = _split(dqkv, *run, 3, ctx.heads)
            (y_,), (dy_,) = _split(y, *run, 1, ctx.heads), _split(dy, *run, 1, ctx.heads)
            g = dy_ * r
            matmul(transposed(e), g, out=dv)
            da = matmul(g, transposed(v))
            da -= row_dots(g, y_)
            da *= e
            matmul(da, k, out=dq)
            dq *= ctx.scale
            matmul(transposed(da), q, out=dk)
            dk *= ctx.scale
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
