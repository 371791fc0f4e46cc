"""Operations that only rearrange elements: reshape, transpose, concat, slicing, expand."""

import itertools
import numbers

from minijepa.autograd import Function, Tensor, unbroadcast
from minijepa.backend import device_of, is_array, plain, to_device, xp_of
from minijepa.errors import ShapeError
from minijepa.ops.rows import rows


class Reshape(Function):
    """The same elements in the same order in another shape;  dx = dy in x's shape"""

    shapes = "(*) -> (*)"

    @staticmethod
    def forward(ctx, x, *, shape):
        ctx.shape = x.shape
        return x.reshape(shape)

    @staticmethod
    def backward(ctx, dy):
        return (dy.reshape(ctx.shape),)


class Transpose(Function):
    """y's axis i is x's axis axes[i].

    Backward must undo this: x's axis axes[i] is dy's axis i, which is the inverse permutation. (For a swap of two axes
    the inverse is the permutation itself; for a cycle of three, using it again is wrong.)
    """

    shapes = "(*) -> (*)"

    @staticmethod
    def forward(ctx, x, *, axes):
        ctx.axes = tuple(range(x.ndim)[::-1] if axes is None else axes)
        return x.transpose(ctx.axes)

    @staticmethod
    def backward(ctx, dy):
        inverse = [0] * len(ctx.axes)
        for i, axis in enumerate(ctx.axes):
            inverse[axis] = i
        return (dy.transpose(inverse),)


class Concat(Function):
    """Arrays joined along an axis;  each input's gradient is its own part of dy"""

    shapes = "(*)+ -> (*)"

    @staticmethod
    def forward(ctx, *arrays, axis=0):
        ctx.axis, ctx.ends = axis, list(itertools.accumulate(a.shape[axis] for a in arrays))
        return xp_of(arrays[0]).concatenate(arrays, axis=axis)

    @staticmethod
    def backward(ctx, dy):
        return tuple(xp_of(dy).split(dy, ctx.ends[:-1], axis=ctx.axis))


class Slice(Function):
    """y = x[index] for slices, whole numbers, ``...``, None and masks: a selection in which no element repeats.

    dx is dy at the selected elements and zero elsewhere. (Index arrays, which may repeat rows, go to
    :func:`minijepa.ops.rows`.)
    """

    shapes = "(*) -> (*)"

    @staticmethod
    def forward(ctx, x, *, index):
        ctx.shape, ctx.index = x.shape, index
        return x[index]

    @staticmethod
    def backward(ctx, dy):
        dx = xp_of(dy).zeros(ctx.shape, dy.dtype)
        dx[ctx.index] = dy
        return (dx,)


class Expand(Function):
    """x repeated along axes of length 1 and new axes in front;  dx = Σ dy over the copies (see ``unbroadcast``)"""

    shapes = "(*) -> (*)"

    @staticmethod
    def forward(ctx, x, *, shape):
        ctx.shape = x.shape
        return xp_of(x).broadcast_to(x, shape)

    @staticmethod
    def backward(ctx, dy):
        return (unbroadcast(dy, ctx.shape),)


def reshape(x, shape):
    """x in another shape; one length may be −1."""
    return Reshape.apply(x, shape=shape)


def transpose(x, axes=None):
    """x with its axes permuted: y.shape[i] = x.shape[axes[i]]; None reverses them."""
    return Transpose.apply(x, axes=axes)


def concat(tensors, axis=0):
    """Tensors joined along an existing axis."""
    return Concat.apply(*tensors, axis=axis)


def expand(x, shape):
    """x broadcast to ``shape`` (NumPy's rules)."""
    return Expand.apply(x, shape=tuple(shape))


def _as_mask(part, x):
    """The booleans of an index as an array on x's device; anything else unchanged."""
    if not (is_array(part) or isinstance(part, list)):
        return part
    try:
        array = plain(part)
    except ValueError:  # a ragged list
        return part
    return to_device(array, device_of(x.data if isinstance(x, Tensor) else x)) if array.dtype.kind == "b" else part


def _selects_once(part):
    simple = part is None or part is Ellipsis or isinstance(part, (numbers.Integral, slice))
    return simple or (is_array(part) and part.dtype.kind == "b")


def getitem(x, index):
    """x[index] for whole numbers, slices, ``...``, None and boolean masks; an index array gathers rows (``ops.rows``).

    A mask over x's first axes (or, after slices, later ones) selects where it is true: (t, ...) -> (count, ...).
    """
    parts = tuple(_as_mask(part, x) for part in (index if isinstance(index, tuple) else (index,)))
    if all(_selects_once(part) for part in parts):
        return Slice.apply(x, index=parts)
    if isinstance(index, tuple):
        raise ShapeError("a Tensor takes one index array, for rows: x[index]; reshape or transpose first")
    return rows(x, index)
