"""The fused twins of the hot operations: the same ``forward`` and ``backward`` as in ops/, in one or two launches each.

A twin registers itself with :func:`twin_of`; its ``takes`` says for which inputs it can replace the operation.
``Function.apply`` asks it, and the tape's entry remembers whether it ran. Its formulas are those of the operation. A
function such as ``matmul`` has a twin too, with ``run``: see ``backend.has_twin``.
"""

import numpy as np

from minijepa.backend import column_sums, device_of, is_array, matmul, to_device, xp_of
from minijepa.kernels import cublas, launches
from minijepa.kernels.launcher import fitted, takes
from minijepa.ops.attention import Attention
from minijepa.ops.gelu import Gelu
from minijepa.ops.layer_norm import LayerNorm
from minijepa.ops.losses import L2Loss, SmoothL1Loss, row_count
from minijepa.ops.matmul import Linear
from minijepa.ops.rows import Rows, offsets_of
from minijepa.training.ema import update_ema
from minijepa.training.optim import AdamW, squared_norm

TINY = 1e-37  # smaller constants become 0 in kernels, which have no subnormal numbers
MOST_BLOCKS = 65535  # of a grid's second axis


def twin_of(reference):
    """Register a class with ``takes``, ``forward`` and ``backward`` as the twin of an operation.

    For a function decorated with ``backend.has_twin``: a class with ``takes`` and ``run``.
    """

    def register(twin):
        reference.twin = twin
        return twin

    return register


# ---------------------------------------------------------------------------------------------------------- operations


@twin_of(Linear)
class FusedLinear:
    """The bias is added within the product. Backward is the reference's."""

    @staticmethod
    def takes(x, w, b):
        return b is not None and takes(x, w, b) and getattr(cublas.handle(xp_of(x)), "adds_bias", False)

    @staticmethod
    def forward(ctx, x, w, b):
        y = xp_of(x).empty((*x.shape[:-1], len(w)), x.dtype)
        if not cublas.handle(xp_of(x)).linear(x.reshape(-1, x.shape[-1]), w, b, y):
            return Linear.forward(ctx, x, w, b)
        ctx.save(x, w)
        return y

    backward = staticmethod(Linear.backward)


@twin_of(Gelu)
class FusedGelu:
    """It saves x and the bias instead of dy/dx: the backward kernel computes that again."""

    takes = staticmethod(takes)

    @staticmethod
    def forward(ctx, x, bias):
        y = xp_of(x).empty(x.shape, x.dtype)
        ctx.save(x, bias)
        launches.gelu_forward(x, bias, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, bias = ctx.saved
        empty = xp_of(dy).empty
        dx, dbias = empty(dy.shape, dy.dtype), empty(dy.shape[-1:], dy.dtype)
        launches.gelu_backward(fitted(dy), x, bias, dx, dbias)
        return dx, dbias if ctx.needs[1] else None


@twin_of(LayerNorm)
class FusedLayerNorm:
    @staticmethod
    def takes(x, w, b, eps):
        return len(w) <= launches.WIDEST and (eps == 0 or eps > TINY) and takes(x, w, b)

    @staticmethod
    def forward(ctx, x, w, b, *, eps):
        empty, recorded = xp_of(x).empty, ctx.recorded
        y = empty(x.shape, x.dtype)
        xhat = empty(x.shape, x.dtype) if recorded else None
        r = empty((*x.shape[:-1], 1), x.dtype) if recorded else None
        ctx.save(xhat, r, w)
        launches.layer_norm_forward(x, w, b, eps, y, xhat, r)
        return y

    @staticmethod
    def backward(ctx, dy):
        xhat, r, w = ctx.saved
        empty = xp_of(dy).empty
        dx, dw_db = empty(dy.shape, dy.dtype), empty((2, len(w)), dy.dtype)
        launches.layer_norm_backward(fitted(dy), xhat, r, w, dx, dw_db)
        return dx, dw_db[0], dw_db[1]


@twin_of(Attention)
class FusedAttention:
    """It saves lse = ln Σⱼ e^A[:, j] instead of E: the backward kernel recomputes P = e^(A − lse)."""

    @staticmethod
    def takes(qkv, packing, num_heads):
        return qkv.shape[1] // (3 * num_heads) in launches.HEAD_DIMS and num_heads <= MOST_BLOCKS and takes(qkv)

    @staticmethod
    def forward(ctx, qkv, *, packing, num_heads):
        ctx.packing, ctx.num_heads = packing, num_heads
        empty = xp_of(qkv).empty
        y, lse = empty((len(qkv), qkv.shape[1] // 3), qkv.dtype), empty((len(qkv), num_heads), qkv.dtype)
        launches.attention_forward(qkv, device_offsets(packing), num_heads, packing.longest, y, lse)
        ctx.save(qkv, y, lse)
        return y

    @staticmethod
    def backward(ctx, dy):
        qkv, y, lse = ctx.saved
        dqkv, packing = xp_of(qkv).empty(qkv.shape, qkv.dtype), ctx.packing
        launches.attention_backward(
            qkv, device_offsets(packing), ctx.num_heads, packing.longest, y, lse, fitted(dy), dqkv
        )
        return (dqkv,)


@twin_of(Rows)
class FusedRows:
    @staticmethod
    def takes(x, index):
        return x.ndim == 2 and x.shape[1] <= 32 * MOST_BLOCKS and len(index.array) > 0 and takes(x)

    @staticmethod
    def forward(ctx, x, *, index):
        ctx.index, ctx.shape = index, x.shape
        y = xp_of(x).empty((len(index.array), x.shape[1]), x.dtype)
        launches.gather(x, int32_rows(index), y)
        return y

    @staticmethod
    def backward(ctx, dy):
        lists = device_lists(ctx.index, ctx.shape[0])
        if lists is None:
            return Rows.backward(ctx, dy)
        dx = xp_of(dy).empty(ctx.shape, dy.dtype)
        launches.gather_sum(fitted(dy), *lists, dx)
        return (dx,)


@twin_of(L2Loss)
@twin_of(SmoothL1Loss)
class FusedLoss:
    """Both losses in one kernel, with ``beta`` 0 for the squared distance. Backward recomputes p − q.

    ``count`` may be on the GPU, int32 (2,): the number of valid rows (the rest is padding), and the divisor.
    """

    @staticmethod
    def takes(p, q, count, beta=0):
        return (beta == 0 or beta > TINY) and takes(p, q)

    @staticmethod
    def forward(ctx, p, q, *, count, beta=0):
        xp = xp_of(p)
        if not is_array(count):
            name = "smooth_l1_loss" if beta else "l2_loss"
            count = xp.asarray(np.array([len(p), row_count(name, count, p)], np.int32))
        ctx.count, ctx.beta = count, beta
        ctx.save(p, q)
        y = xp.empty((), p.dtype)
        launches.loss_forward(p, q, count, beta, y)
        return y

    @staticmethod
    def backward(ctx, dy):
        p, q = ctx.saved
        dp = xp_of(p).empty(p.shape, p.dtype)
        launches.loss_backward(p, q, ctx.count, ctx.beta, dy, dp)
        return dp, -dp if ctx.needs[1] else None


# ------------------------------------------------------------------------- whole vectors, sums of columns, and products


@twin_of(squared_norm)
class FusedSquaredNorm:
    takes = staticmethod(takes)

    @staticmethod
    def run(vector):
        y = xp_of(vector).empty((), vector.dtype)
        launches.sum_of_squares(vector, y)
        return y


@twin_of(AdamW.update)
class FusedAdamW:
    """``scalars`` may be on the GPU, as an array (3,)."""

    @staticmethod
    def takes(adamw, scalars):
        """If decay applies to a part at the start and one at the end, as IJEPA lays out its parameters."""
        parts = adamw.decayed
        at_the_ends = len(parts) == 2 and parts[0].start == 0 and parts[1].stop == adamw.data.size
        return at_the_ends and takes(adamw.data, adamw.grad)

    @staticmethod
    def run(adamw, scalars):
        first, last = adamw.decayed
        vectors = adamw.data, adamw.grad, adamw.m, adamw.v
        launches.adamw(*vectors, _on_device(scalars, adamw.data), adamw.beta1, adamw.beta2, first.stop, last.start)


@twin_of(update_ema)
class FusedEma:
    """``momentum`` may be on the GPU, as an array (2,) of momentum and 1 − momentum."""

    @staticmethod
    def takes(target, source, momentum):
        return takes(target, source)

    @staticmethod
    def run(target, source, momentum):
        pair = momentum if is_array(momentum) else (momentum, 1 - momentum)
        launches.ema(target, source, _on_device(pair, target))


def _on_device(numbers, like):
    return numbers if is_array(numbers) else xp_of(like).asarray(np.array(numbers, np.float32))


@twin_of(column_sums)
class FusedColumnSums:
    takes = staticmethod(takes)

    @staticmethod
    def run(x):
        y = xp_of(x).empty(x.shape[1:], x.dtype)
        launches.column_sums(x, y)
        return y


@twin_of(matmul)
class CublasProduct:
    """For two matrices; products of stacks of matrices are CuPy's."""

    @staticmethod
    def takes(a, b, out=None):
        on_gpu = out is None and device_of(a) == "cuda"
        return on_gpu and cublas.takes(a, b) and cublas.handle(xp_of(a)) is not None

    @staticmethod
    def run(a, b, out=None):
        y = xp_of(a).empty((a.shape[0], b.shape[1]), a.dtype)
        return cublas.handle(xp_of(a)).matmul(a, b, y)


# -------------------------------------------------- what kernels need to know about a packing or an index, made once


def device_offsets(packing):
    """Where each sequence begins, and where the last one ends, on the GPU: int32 (S + 1,)."""
    if not hasattr(packing, "device_offsets"):
        packing.device_offsets = to_device(packing.offsets.astype(np.int32), "cuda")
    return packing.device_offsets


def int32_rows(index):
    """The row numbers of a RowIndex, int32 (t,)."""
    if not hasattr(index, "int32"):
        index.int32 = index.array.astype(np.int32)
    return index.int32


def device_lists(index, n):
    """:func:`row_lists` of a RowIndex on the GPU; None if building them would force a sync."""
    lists = vars(index).setdefault("lists", {})
    if n not in lists and index.on_host:
        lists[n] = [to_device(a, "cuda") for a in row_lists(index.host, n)]
    return lists.get(n)


def row_lists(index, n):
    """For each row number i below n, the t with index[t] = i, in order: members[starts[i]:starts[i + 1]].

    ``starts`` (n + 1,) and ``members`` (t,), int32.
    """
    small = index.astype(np.uint16) if n <= 2**16 else index  # 16 bits: NumPy sorts them by radix, in linear time
    members = np.argsort(small, kind="stable").astype(np.int32)
    return offsets_of(np.bincount(index, minlength=n)).astype(np.int32), members
