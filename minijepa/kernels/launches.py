"""A function to launch each kernel. Each .cu file begins with its formulas and shapes.

Arrays are float32 in C order on a GPU (``launcher.takes``), or int32 if they hold row numbers; the last arrays receive
the results. Matrices may have any number of leading axes.
"""

from minijepa import backend
from minijepa.kernels.launcher import launch

HEAD_DIMS = {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 2, 48: 4, 64: 4}  # head dim: how many lanes share a row
WIDEST = 512  # features that LayerNorm's kernels take: a lane holds a 32nd of them in registers


def _over(n, per):
    """⌈n / per⌉"""
    return -(-n // per)


def _chunks(rows, per_chunk=32, most=256):
    """The number of parts to divide rows into: enough to keep a GPU busy, few enough to add up quickly."""
    return min(most, _over(rows, per_chunk))


def _matrix(x):
    """(rows, n) of an array (..., n)"""
    return x.size // x.shape[-1], x.shape[-1]


def _add_up(partials, y):
    """y = Σ over the rows of ``partials`` (chunks, n); y has n elements."""
    chunks, n = partials.shape
    launch("sums", "sum_partials", (_over(n, 32),), (32, 32), (partials, y, chunks, n))


def _partials(like, chunks, n=1):
    return backend.xp_of(like).empty((chunks, n), like.dtype)


def column_sums(x, y):
    """y = Σ over the rows of x: (..., n) -> (n,)"""
    rows, n = _matrix(x)
    partials = _partials(x, _chunks(rows), n)
    launch("sums", "column_sums", (_over(n, 32), len(partials)), (32, 8), (x, partials, rows, n))
    _add_up(partials, y)


def sum_of_squares(x, y):
    """y = Σ x²: (...) -> one element"""
    partials = _partials(x, _chunks(x.size, 1024, 1024))
    launch("sums", "sum_of_squares", (len(partials),), (32, 8), (x, partials, x.size))
    _add_up(partials, y)


def gelu_forward(x, bias, y):
    """y = gelu(x + bias). ``bias`` may be None."""
    rows, n = _matrix(x)
    arrays = x, x if bias is None else bias, y
    launch("gelu", "gelu_forward", (_over(n, 32), _chunks(rows)), (32, 8), (*arrays, rows, n, bias is not None))


def gelu_backward(dy, x, bias, dx, dbias):
    """dx = g dy with g = dy/dx of the forward pass, dbias = Σ dx over the rows. ``bias`` may be None."""
    rows, n = _matrix(dy)
    partials = _partials(dy, _chunks(rows), n)
    arrays = dy, x, x if bias is None else bias, dx, partials
    launch("gelu", "gelu_backward", (_over(n, 32), len(partials)), (32, 8), (*arrays, rows, n, bias is not None))
    _add_up(partials, dbias)


def layer_norm_forward(x, w, b, eps, y, xhat, r):
    """y = w x̂ + b, with x̂ (..., n) and r (..., 1); ``xhat`` and ``r`` may both be None."""
    rows, n = _matrix(x)
    keep = xhat is not None
    arrays = (x, w, b, y, xhat, r) if keep else (x, w, b, y, y, y)
    launch("layer_norm", "layer_norm_forward", (_over(rows, 4),), (32, 4), (*arrays, rows, eps, keep), WIDTH=n)


def layer_norm_backward(dy, xhat, r, w, dx, dw_db):
    """dx, and dw and db as the rows of ``dw_db`` (2, n)"""
    rows, n = _matrix(dy)
    partials = _partials(dy, _chunks(rows, 8, 512), 2 * n)
    arrays = (dy, xhat, r, w, dx, partials)
    launch("layer_norm", "layer_norm_backward", (1, len(partials)), (32, 4), (*arrays, rows), WIDTH=n)
    _add_up(partials, dw_db)


def attention_forward(qkv, offsets, num_heads, longest, y, lse):
    """Attention within the sequences of packed rows: qkv (T, 3D) -> y (T, D), lse (T, heads).

    ``offsets`` (S + 1): sequence s is rows offsets[s] to offsets[s + 1]; y's rows from offsets[S] on become 0.
    ``longest``: about the longest sequence's length, which sets the block size; longer sequences take more rounds.
    """
    _attention("attention_forward", (qkv, offsets, y, lse), num_heads, longest)


def attention_backward(qkv, offsets, num_heads, longest, y, lse, dy, dqkv):
    """dqkv from dy and the arguments and results of ``attention_forward``; 0 in the spare rows."""
    delta = backend.xp_of(qkv).empty(lse.shape, lse.dtype)
    _attention("attention_backward", (qkv, offsets, y, lse, dy, dqkv, delta), num_heads, longest)


SPARE = 8  # blocks that clear spare rows


def _attention(name, arrays, num_heads, longest):
    qkv, offsets = arrays[:2]
    head_dim, sequences = qkv.shape[1] // (3 * num_heads), len(offsets) - 1
    parts = HEAD_DIMS[head_dim]
    threads = min(256, 32 * _over(parts * longest, 32))
    args = (*arrays, len(qkv), sequences, num_heads)
    launch("attention", name, (sequences + SPARE, num_heads), (threads,), args, HEAD_DIM=head_dim, PARTS=parts)


def gather(x, index, y):
    """y[t] = x[index[t]]: (n_x, n), (t,) -> (t, n)"""
    launch("rows", "gather", (_over(len(y), 8),), (32, 8), (x, index, y, *y.shape))


def gather_sum(dy, starts, members, dx):
    """dx[i] = Σ of the rows of dy that members[starts[i]:starts[i + 1]] names: (t, n) -> (n_x, n)"""
    rows, n = dx.shape
    share = min(32, max(1, len(members) // (4 * rows)))  # about 4 members or more for each thread of a column
    group = 8 if share == 1 else 1
    grid = _over(rows, group), _over(n, 32)
    launch("rows", "gather_sum", grid, (32, share, group), (dy, starts, members, dx, rows, n))


def loss_forward(p, q, counts, beta, y):
    """The loss of ops/losses.py over the first counts[0] rows, divided by counts[1] (times n for smooth-L1).

    ``beta``: smooth-L1's, 0 for the squared distance. ``y``: one element.
    """
    n = p.shape[1]
    partials = _partials(p, _chunks(p.size, 1024, 1024))
    launch("losses", "loss_forward", (len(partials),), (32, 8), (p, q, counts, partials, n, beta))
    _add_up(partials, y)


def loss_backward(p, q, counts, beta, dy, dp):
    """The gradient of p; q's is its negative. ``dy``: one element."""
    rows, n = p.shape
    launch("losses", "loss_backward", (_chunks(p.size, 1024, 4096),), (32, 8), (p, q, counts, dy, dp, rows, n, beta))


def adamw(data, grad, m, v, scalars, beta1, beta2, decay_until, decay_from):
    """An AdamW step, in place. ``scalars`` (3,): rate, eps, decay; it decays before one place and from another on."""
    args = (data, grad, m, v, scalars, beta1, 1 - beta1, beta2, 1 - beta2, decay_until, decay_from, data.size)
    launch("update", "adamw", (_over(data.size, 256),), (256,), args)


def ema(target, source, scalars):
    """target ← momentum target + (1 − momentum) source, in place. ``scalars`` (2,): momentum and 1 − momentum."""
    launch("update", "ema", (_over(target.size, 256),), (256,), (target, source, scalars, target.size))
