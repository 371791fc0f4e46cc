"""The tensor: an array whose operations can be recorded, and the conversion of values to float arrays."""

import operator

import numpy as np

from minijepa.backend import is_array, plain, to_numpy, xp_of
from minijepa.errors import DeviceError, DtypeError, ShapeError, TapeError

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def _comparison(compare):
    return lambda self, other: compare(self.data, other.data if isinstance(other, Tensor) else other)


class Tensor:
    """An array whose operations can be recorded.

    ``data``: a NumPy or CuPy array, or a NumPy scalar, of float32 or float64; Python numbers, lists and integer arrays
    become float32. In an operation with an array, numbers and scalars take its dtype.
    ``requires_grad``: whether ``backward`` adds the gradient to ``grad``, an array of the same shape.
    A float array is shared, not copied.

    Comparisons compare values and return plain boolean arrays, without gradients; dicts and sets tell tensors apart by
    identity. Whatever would silently drop a gradient (np.asarray, a copy) is refused; NumPy's functions accept a tensor
    that requires none.
    """

    __slots__ = ("_mark", "_outline", "data", "grad", "requires_grad")  # _outline: only LeanTape's (training/lanes.py)
    __array_ufunc__ = None  # makes `array * tensor` call the tensor's __rmul__, not multiply element by element

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
        """A leaf that shares the array and requires no gradient."""
        return Tensor(self.data)

    def zero_grad(self):
        """Set the gradient to zero, in place: a parameter's gradient is a view into its model's vector."""
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
        return bool(self.data)  # like an array's: an error for more than one element

    def __repr__(self):
        """The values, or if there are many, their shape, mean and deviation."""
        flag = ", requires_grad=True" if self.requires_grad else ""
        x = to_numpy(self.data)
        many = f"{'×'.join(map(str, x.shape))} of mean {x.mean():.4g}, deviation {x.std():.4g}" if x.size > 20 else ""
        return f"{type(self).__name__}({many or np.array2string(x, precision=4)}, {self.dtype}{flag})"

    def _repr_html_(self):
        from minijepa.pictures.notebook import tensor_html

        return tensor_html(self)

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise DtypeError("converting a Tensor to an array would drop its gradient: use tensor.data")
        if xp_of(self.data) is not np:
            raise DeviceError("this Tensor is on a GPU: minijepa.backend.to_numpy(tensor.data) copies it to the host")
        return np.array(self.data, dtype, copy=copy)

    def __array_function__(self, function, types, args, kwargs):
        """np.sum, np.mean and np.max run the recorded operations; all other functions get the tensor's values."""
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
                "copying a recorded Tensor would drop its gradient: use the tensor itself, or copy tensor.detach()"
            )
        return super().__reduce_ex__(protocol)

    def __setitem__(self, index, value):
        raise TapeError(
            "a Tensor can't be changed in place, because the tape may still need its old value: build a new one "
            "(concat, rows, multiplication by a 0/1 mask), or write to tensor.data after every backward that uses it"
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
    """``data`` as a plain float array. Values without a float dtype take that of ``beside``, or float32.

    float32 and float64 arrays keep their dtype, as do other libraries' arrays and data frames (anything with
    ``__array__``); NumPy scalars keep theirs only without ``beside``.
    """
    if type(data) is np.ndarray and data.dtype in FLOATS:
        return data
    return _converted(data, beside)


def _converted(data, beside):
    if isinstance(data, Tensor):
        if data.requires_grad:
            raise TapeError("a Tensor made from one that requires a gradient would drop it: use that one or detach()")
        return data.data
    try:
        array = plain(data)
    except ValueError as error:  # rows of different lengths
        raise ShapeError(f"a Tensor can't be made from this {type(data).__name__}: {error}") from None
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
