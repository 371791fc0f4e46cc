"""A stand-in for CuPy on a machine without a GPU: arrays that are strict about where they live, and count waiting.

``StrictCupy().ndarray`` holds a NumPy array and hands it out to nobody. It behaves as CuPy's does where that matters:

- it can't be mixed with NumPy arrays, neither as an operand, nor as an index, nor as what is assigned: TypeError;
- what makes the host wait for the device (float(x), x.item(), ``if x:``, asnumpy) is counted in ``synchronisations``,
  and what copies to it (asarray of a host array) in ``uploads``;
- there are no functions but those that CuPy has (``CUPY_HAS``), and a view's ``out`` of matmul must be contiguous;
- kernels are compiled by g++ from the text that CuPy would be given, and run on the CPU (emulator.py);
- a stream can be recorded, as a CUDA graph. Meanwhile nothing is computed: results are full of NaN. Waiting, copies
  between host and device, and CuPy's own products are errors, as with CuPy. ``graph.launch()`` computes all of it, with
  the same numbers and shapes, at the same addresses: what should have changed since then, and did not, shows.

It checks the plumbing of the CUDA path, not its speed and not CuPy itself.
"""

import contextlib
import itertools
import numbers
import operator
import types

import emulator
import numpy as np

# Of the names in CuPy 14's documentation, those that array code here may want; vecdot, errstate ... are not among them.
CUPY_HAS = """
abs add all any arange argsort array asarray ascontiguousarray broadcast_to clip concatenate copyto count_nonzero
cumsum divide empty empty_like equal exp expand_dims flip full isfinite less log matmul maximum mean minimum moveaxis
multiply negative ones ones_like power reciprocal repeat reshape rint split sqrt square stack subtract sum swapaxes take
tanh tile transpose vdot where zeros zeros_like
""".split()


class StrictCupy:
    """A module object to put in the place of ``backend.cupy``."""

    def __init__(self):
        self.__version__ = "14"
        self.synchronisations = self.uploads = 0
        self.recording = None  # a list, while a stream is recorded
        self.kept = []  # arrays that a recording may name by their address
        self.allocator = None
        self.ndarray = type("ndarray", (_Array,), {"module": self})
        self.stream = _Stream(self, 0, False)
        numbers_of_streams = itertools.count(1)
        self.cuda = types.SimpleNamespace(
            runtime=types.SimpleNamespace(
                getDeviceCount=lambda: 1,
                CUDARuntimeError=RuntimeError,
                getDevice=lambda: 0,
                getDeviceProperties=lambda device: {"name": b"stand-in"},
            ),
            Stream=lambda non_blocking: _Stream(self, next(numbers_of_streams), non_blocking),
            get_current_stream=lambda: self.stream,
            MemoryPool=lambda: types.SimpleNamespace(malloc=object(), free_all_blocks=lambda: None),
            using_allocator=self.using_allocator,
        )

    def __getattr__(self, name):
        if name not in CUPY_HAS:
            raise AttributeError(f"CuPy has no {name}")
        function = getattr(np, name)

        def call(*args, **kwargs):
            out = kwargs.get("out")
            if name == "matmul":
                self.refuse_while_recording("CuPy's own product")
                if out is not None and not out.host.flags.c_contiguous:
                    raise TypeError("matmul into a view that is not contiguous")
            result = self.computed(function, self.unwrapped(args), self.unwrapped(kwargs))
            return out if out is not None else self.wrapped(result)

        return call

    def computed(self, function, args, kwargs={}):  # noqa: B006
        """function(*args, **kwargs). While recording, what it computes is NaN, and is computed at each launch."""
        result = function(*args, **kwargs)
        if self.recording is not None and isinstance(result, (np.ndarray, np.generic)):
            given = _flat((args, kwargs, getattr(function, "__self__", None)))
            arrays = [a for a in given if isinstance(a, np.ndarray)]
            if isinstance(result, np.ndarray) and any(np.shares_memory(result, a) for a in arrays):
                if "out" not in kwargs:  # a view, which needs no computing; or an array changed in place, which does
                    return result
            else:
                result = np.array(result)
            self.record(lambda: np.copyto(result, function(*args, **kwargs)), result)
        return result

    @contextlib.contextmanager
    def using_allocator(self, malloc):
        self.allocator = malloc
        yield
        self.allocator = None

    def record(self, action, written):
        if self.allocator is None:
            raise RuntimeError("an array of a graph comes from the pool that others are given blocks of")
        self.recording.append(action)
        if written.dtype.kind == "f":
            written[...] = np.nan

    def refuse_while_recording(self, what):
        if self.recording is not None:
            raise RuntimeError(f"{what} while a stream is recorded")

    def empty(self, shape, dtype=float):
        """Full of NaN, so that use of what was there shows."""
        return self.wrapped(np.full(shape, {"f": np.nan, "u": 255}.get(np.dtype(dtype).kind, -1), dtype))

    def RawModule(self, code, options=()):
        """Kernels, which run on the CPU."""
        module = emulator.Module(code, options)

        def get_function(name):
            function = module.get_function(name)
            return lambda grid, block, args: self.do(function, grid, block, self.unwrapped(args))

        return types.SimpleNamespace(get_function=get_function)

    def asarray(self, data, dtype=None):
        if isinstance(data, _Array):
            return data if dtype in (None, data.dtype) else data.astype(dtype)
        if np.ndim(data):  # without axes, CuPy has a kernel fill in the value
            self.refuse_while_recording("a copy to the device")
            self.uploads += 1
        return self.wrapped(np.array(data, dtype))

    def asnumpy(self, array):
        self.wait()
        return array.host.copy()

    def wait(self):
        self.refuse_while_recording("waiting for the device")
        self.synchronisations += 1

    def do(self, function, *args):
        """What has no result but what it writes: at once, or, while recording, at each launch."""
        if self.recording is None:
            function(*args)
        else:
            self.recording.append(lambda: function(*args))

    def wrapped(self, value):
        if isinstance(value, (np.ndarray, np.generic)):
            array = object.__new__(self.ndarray)
            array.host = np.asarray(value)
            if self.recording is not None:
                self.kept.append(array.host)
            return array
        return type(value)(map(self.wrapped, value)) if isinstance(value, (tuple, list)) else value

    def unwrapped(self, value):
        if isinstance(value, _Array):
            return value.host
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError(f"a NumPy array of shape {value.shape} among arrays of the device")
        if isinstance(value, (tuple, list)):
            return type(value)(self.unwrapped(item) for item in value)
        if isinstance(value, dict):
            return {key: self.unwrapped(item) for key, item in value.items()}
        return value


class _Stream:
    def __init__(self, module, ptr, non_blocking):
        self.module, self.ptr, self.non_blocking = module, ptr, non_blocking

    def use(self):
        self.module.stream = self

    def synchronize(self):
        self.module.wait()

    def begin_capture(self):
        if not self.non_blocking:
            raise RuntimeError("the default stream can't be recorded, nor one that waits for it")
        if self is not self.module.stream:
            raise RuntimeError("a stream is recorded that is not the current one")
        self.module.recording = []

    def end_capture(self):
        actions, self.module.recording = self.module.recording, None

        def launch():
            for action in actions:
                action()

        return types.SimpleNamespace(launch=launch, upload=lambda: None, actions=actions)


def _flat(value):
    """The items of nested tuples, lists and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in _flat(item)] if isinstance(value, (tuple, list)) else [value]


class _Array:
    __array_ufunc__ = None  # NumPy's operators ask ours, which refuse
    data = property(lambda self: types.SimpleNamespace(ptr=self.host.ctypes.data))
    base = None
    T = property(lambda self: self.transpose())

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index):
        index = self.module.unwrapped(index)
        if isinstance(index, int):  # without axes it is still a view, other than with NumPy
            index = (index, ...)
        return self.module.wrapped(self.module.computed(self.host.__getitem__, (index,)))

    def __setitem__(self, index, value):
        self.module.do(self.host.__setitem__, self.module.unwrapped(index), self.module.unwrapped(value))

    def __array__(self, *args, **kwargs):
        raise TypeError("an array of the device does not become one of NumPy by itself: asnumpy")

    def item(self):
        self.module.wait()
        return self.host.item()

    def __float__(self):
        return float(self.item())

    def __bool__(self):
        self.module.wait()
        return bool(self.host)


def _method(name):
    def method(self, *args, **kwargs):
        module = self.module
        args, kwargs = module.unwrapped(args), module.unwrapped(kwargs)
        return module.wrapped(module.computed(getattr(self.host, name), args, kwargs))

    return method


def _operator(name):
    def operator(self, *others):
        for other in others:
            if not isinstance(other, (_Array, numbers.Number)):
                return NotImplemented
        method, others = getattr(self.host, name), self.module.unwrapped(others)
        if name.startswith("__i") and name != "__invert__":
            self.module.do(method, *others)
            return self
        return self.module.wrapped(self.module.computed(method, others))

    return operator


for _name in "shape dtype ndim size nbytes flags strides".split():
    setattr(_Array, _name, property(operator.attrgetter(f"host.{_name}")))
for _name in "all astype copy max mean min ravel reshape squeeze sum swapaxes take transpose".split():
    setattr(_Array, _name, _method(_name))
_binary = "add sub mul truediv pow floordiv mod matmul and or xor".split()
for _name in [
    *(f"__{kind}{name}__" for name in _binary for kind in ("", "r", "i")),
    *(f"__{name}__" for name in "eq ne lt le gt ge neg abs invert".split()),
]:
    setattr(_Array, _name, _operator(_name))
_Array.__hash__ = object.__hash__
