"""Multi-head self-attention on packed sequences (Vaswani et al., 2017, arXiv:1706.03762, section 3.2).

Every step of the derivation: docs/backward/attention.md.
"""

import math

import numpy as np

from minijepa.autograd import Function, Tensor
from minijepa.backend import matmul, plain, row_dots, row_sums, xp_of
from minijepa.errors import ShapeError
from minijepa.ops.matmul import transposed
from minijepa.ops.rows import offsets_of
from minijepa.ops.softmax import exp_rows


class Packing:
    """How the rows of a packed matrix divide into sequences: the first lengths[0] rows are the first, and so on.

    ``lengths``: whole numbers ≥ 1. ``offsets`` (S + 1,): sequence s is rows offsets[s] to offsets[s + 1].
    ``runs``: (first row, number of sequences, their length) of neighbouring sequences of equal length, which are
    computed together; sort sequences by length to get few runs.
    """

    def __init__(self, lengths):
        try:
            lengths = np.asarray(plain(lengths))
            fit = lengths.ndim == 1 and lengths.dtype.kind in "iu" and len(lengths) and lengths.min() >= 1
        except ValueError:  # lists of different lengths
            fit = False
        if not fit:
            raise ShapeError("a packing needs the lengths of at least one sequence, whole numbers of at least 1")
        self.lengths = lengths.astype(np.int64)
        self.offsets = offsets_of(self.lengths)
        self.total, self.longest = int(self.offsets[-1]), int(self.lengths.max())
        first = np.flatnonzero(np.diff(self.lengths, prepend=-1))
        counts = np.diff(first, append=len(self.lengths))
        self.runs = [(int(self.offsets[i]), int(n), int(self.lengths[i])) for i, n in zip(first, counts)]

    def __repr__(self):
        return f"Packing({self.lengths.tolist()})"


def _sequences(rows, start, count, length):
    """The rows of a run, (T, heads, n), as a view (count, heads, length, n): a matrix for each sequence and head."""
    run = rows[start : start + count * length]
    return run.reshape(count, length, *run.shape[1:]).swapaxes(1, 2)


class Attention(Function):
    """In each sequence and head, with q, k, v (n, d) and s = 1/√d:

        A = s q kᵀ,   E = exp(A − c),   r = 1 / Σⱼ E[:, j],   y = r (E v)

    so that P = r E = softmax(A). Backward, with g = r dy:

        y = P v:          dv = Pᵀ dy = Eᵀ g,   dP = dy vᵀ
        P = softmax(A):   dA = P (dP − Σⱼ dP[:, j] P[:, j])
        that sum is       Σⱼ Σ_f dy[:, f] v[j, f] P[:, j] = Σ_f dy[:, f] y[:, f]
        so with P = r E   dA = E (g vᵀ − Σ_f g[:, f] y[:, f])
        A = s q kᵀ:       dq = s dA k,   dk = s dAᵀ q

    r and s multiply arrays of (n, d), not of (n, n): P itself is never formed. Tokens of different sequences never
    meet, so there is nothing to mask, and row-wise work is done for all sequences at once. E, r and y are saved; q, k,
    v are views of the input. (Dao et al., "FlashAttention", 2022, arXiv:2205.14135, appendix B, rearrange it likewise.)
    """

    shapes = "(t, e) -> (t, o)"

    @staticmethod
    def forward(ctx, qkv, *, packing, num_heads):
        t, xp = len(qkv), xp_of(qkv)
        ctx.packing = packing
        q, k, v = qkv.reshape(t, 3, num_heads, -1).swapaxes(0, 1)  # (T, heads, d) each
        scale = 1 / math.sqrt(q.shape[2])
        sq, y, r = q * scale, xp.empty(q.shape, q.dtype), xp.empty((t, num_heads, 1), q.dtype)
        exponentials = []
        for run in packing.runs:
            sq_, k_, v_, y_, r_ = (_sequences(a, *run) for a in (sq, k, v, y, r))
            e = exp_rows(matmul(sq_, transposed(k_)))
            xp.divide(1, row_sums(e), out=r_)
            matmul(e, v_, out=y_)
            exponentials.append(e)
        y *= r
        ctx.save(qkv, y, r, *exponentials)
        ctx.scale = scale
        return y.reshape(t, -1)

    @staticmethod
    def backward(ctx, dy):
        qkv, y, r, *exponentials = ctx.saved
        dqkv = xp_of(qkv).empty(qkv.shape, qkv.dtype)
        t, heads, _ = y.shape
        q, k, v = qkv.reshape(t, 3, heads, -1).swapaxes(0, 1)
        dq, dk, dv = dqkv.reshape(t, 3, heads, -1).swapaxes(0, 1)
        g = dy.reshape(y.shape) * r
        gy = row_dots(g, y)
        for run, e in zip(ctx.packing.runs, exponentials):
            q_, k_, v_, dq_, dk_, dv_, g_, gy_ = (_sequences(a, *run) for a in (q, k, v, dq, dk, dv, g, gy))
            matmul(transposed(e), g_, out=dv_)
            da = matmul(g_, transposed(v_))
            da -= gy_
            da *= e
            matmul(da, k_, out=dq_)
            matmul(transposed(da), q_, out=dk_)
        dqkv[:, : 2 * heads * q.shape[2]] *= ctx.scale  # dq and dk
        return (dqkv,)


def attention(qkv, packing, num_heads):
    """softmax(q kᵀ / √d) v in each sequence and head: packed qkv (T, 3D) -> packed (T, D).

    ``qkv``: each token row holds q, then k, then v, each of them head by head (timm's order).
    ``packing``: a :class:`Packing`, or the sequences' lengths, which must sum to T. ``num_heads`` divides D.
    """
    qkv = qkv if isinstance(qkv, Tensor) else Tensor(qkv)
    if not isinstance(packing, Packing):
        packing = Packing(packing)
    if qkv.ndim != 2 or num_heads < 1 or not qkv.shape[1] or qkv.shape[1] % (3 * num_heads):
        raise ShapeError(f"attention: takes (T, 3D), D ≥ 1 and divisible by {num_heads} heads, was given {qkv.shape}")
    if packing.total != qkv.shape[0]:
        raise ShapeError(f"attention: the packing's lengths sum to {packing.total}, but qkv has {qkv.shape[0]} rows")
    return Attention.apply(qkv, packing=packing, num_heads=num_heads)
