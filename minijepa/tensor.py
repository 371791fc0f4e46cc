"""The tensor: an array that operations can be recorded on, and what it takes for an array."""

import operator

import numpy as np

from minijepa.backend import is_array, plain, to_numpy, xp_of
from minijepa.errors import DeviceError, DtypeError, ShapeError, TapeError

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def _comparison(compare):
    return lambda self, other: compare(self.data, other.data if isinstance(other, Tensor) else other)


class Tensor:
    """An array that operations can be recorded on.

    ``data``: a NumPy or CuPy array, or a NumPy scalar, of float32 or float64; Python numbers, lists and integer arrays
    become float32. Beside an array in an operation, numbers and scalars take its dtype.
    ``requires_grad``: whether ``backward`` shall fill ``grad``, an array of the same shape, by adding to it.
    A float array is not copied: the tensor looks at it.

    Comparisons are about the values and give plain arrays of booleans, through which no gradient flows; as the key of a
    dict or a member of a set, a tensor is itself. What would cut a gradient off without a word (np.asarray, a copy)
    is refused; a tensor that requires none is an array to NumPy's functions.
    """

    __slots__ = ("_mark", "data", "grad", "requires_grad")
    __array_ufunc__ = None  # makes `array * tensor` ask the tensor, instead of multiplying element by element

    def __init__(self, data, requires_grad=False):
        self.data = as_float_array(data)
        self.requires_grad = requires_grad
        self.grad = None
        self._mark = None  # of the tape that recorded this tensor; None for a leaf

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)

    def item(self):
        """The only element, as a Python float."""
        return float(self.data.item())

    __float__ = item

    def __format__(self, spec):
        return format(self.item(), spec) if spec else str(self)

    def detach(self):
        """A leaf that looks at the same array and requires no gradient."""
        return Tensor(self.data)

    def zero_grad(self):
        """Set the gradient to zero, in place: a parameter's is a view into the vector of all of a model's."""
        if self.grad is not None:
            self.grad[...] = 0

    def backward(self, *args):
        raise TapeError("a Tensor does not know its tape: with Tape() as tape: loss = ...; then tape.backward(loss)")

    def __len__(self):
        if not self.ndim:
            raise ShapeError("a scalar Tensor has no length")
        return len(self.data)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    __eq__, __ne__ = map(_comparison, (operator.eq, operator.ne))
    __lt__, __le__, __gt__, __ge__ = map(_comparison, (operator.lt, operator.le, operator.gt, operator.ge))
    __hash__ = object.__hash__

    def __contains__(self, value):
        return bool(xp_of(self.data).any(self == value))

    def __bool__(self):
        return bool(self.data)  # as an array's: of a single element, and an error for more

    def __repr__(self):
        """The values, or of many the shape and their mean and deviation."""
        flag = ", requires_grad=True" if self.requires_grad else ""
        x = to_numpy(self.data)
        many = f"{'×'.join(map(str, x.shape))} of mean {x.mean():.4g}, deviation {x.std():.4g}" if x.size > 20 else ""
        return f"{type(self).__name__}({many or np.array2string(x, precision=4)}, {self.dtype}{flag})"

    def _repr_html_(self):
        from minijepa.pictures.notebook import tensor_html

        return tensor_html(self)

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise DtypeError("as an array, a Tensor that requires a gradient would lose it: use tensor.data")
        if xp_of(self.data) is not np:
            raise DeviceError("this Tensor is on a GPU: minijepa.backend.to_numpy(tensor.data) copies it to the host")
        return np.array(self.data, dtype, copy=copy)

    def __array_function__(self, function, types, args, kwargs):
        """np.sum, np.mean and np.max of a tensor are the operations; all other functions see its values."""
        if function in (np.sum, np.mean, np.max) and 1 <= len(args) <= 2 and args[0] is self:
            return getattr(self, function.__name__)(*args[1:], **kwargs)

        def values(x):
            if isinstance(x, Tensor):
                return x.data if function in (np.shape, np.ndim, np.size) else np.asarray(x)
            return type(x)(map(values, x)) if type(x) in (list, tuple) else x

        return function(*values(args), **{name: values(x) for name, x in kwargs.items()})

    def __reduce_ex__(self, protocol):  # what copy, deepcopy and pickle ask for
        if self._mark is not None:
            raise TapeError(
                "a copy of a recorded Tensor would lose its gradient, which flows through the tape's own objects: use "
                "the tensor itself, or copy tensor.detach()"
            )
        return super().__reduce_ex__(protocol)

    def __setitem__(self, index, value):
        raise TapeError(
            "a Tensor is not changed in place, because the tape may still need its old value: build a new one "
            "(concat, rows, multiplication by a 0/1 mask), or write into tensor.data when every backward that uses it "
            "has run"
        )


class Parameter(Tensor):
    """A Tensor that is trained: it requires a gradient, has a name once a model owns it, and may decay.

    ``decay``: whether AdamW's weight decay applies (matrices: yes; biases, norms, positions, the mask token: no).
    """

    __slots__ = ("decay", "name")

    def __init__(self, data, decay=False, name=None):
        super().__init__(data, requires_grad=True)
        self.decay, self.name = decay, name


def as_float_array(data, beside=None):
    """``data`` as a plain float array. What has no float dtype of its own takes that of ``beside``, or float32.

    Arrays of float32 and float64 have a dtype of their own, as do other libraries' arrays and data frames (whatever has
    ``__array__``); NumPy's scalars of these only if no array is beside them.
    """
    if type(data) is np.ndarray and data.dtype in FLOATS:
        return data
    if isinstance(data, Tensor):
        if data.requires_grad:
            raise TapeError("a Tensor made of one that requires a gradient would lose it: use it itself, or detach()")
        return data.data
    try:
        array = plain(data)
    except ValueError as error:  # rows of different lengths
        raise ShapeError(f"a Tensor can't be made of this {type(data).__name__}: {error}") from None
    if array.dtype.kind not in "fiub":
        raise DtypeError(f"a Tensor holds real numbers; got {type(data).__name__} of dtype {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise DtypeError(f"a Tensor holds float32 or float64; got {array.dtype}: convert it with array.astype")
    scalar_beside = isinstance(data, np.generic) and beside is not None
    if array.dtype in FLOATS and (is_array(data) or hasattr(data, "__array__")) and not scalar_beside:
        return array
    if beside is None:
        return array.astype(np.float32)
    return array.astype(beside.dtype) if is_array(data) else xp_of(beside).asarray(array, dtype=beside.dtype)
