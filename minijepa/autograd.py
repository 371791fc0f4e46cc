"""The engine: the tape that records operations, and the backward pass along it.

Reverse-mode differentiation in one paragraph. A computation y = fₙ(… f₂(f₁(x))) has, for a scalar loss L, the
gradients dL/dyᵢ₋₁ = (∂fᵢ/∂yᵢ₋₁)ᵀ dL/dyᵢ. Each operation knows its own transposed product ("backward"); the tape knows
the order. Walking the tape from its end to its start, every gradient is complete before it is used, because all uses of
a value come after the entry that made it. A value that was used twice receives the sum of both gradients.

    with Tape() as tape:            # operations are recorded only inside
        loss = (x * w).sum()
    tape.backward(loss)             # x.grad and w.grad now hold dL/dx and dL/dw

The division of labour: an operation (:class:`Function`) holds formulas and nothing else. Checking shapes, dtypes and
devices, summing a gradient over broadcast axes, and adding up the gradients of a value used twice are done here, once.
"""

import math
import re
import threading
from dataclasses import dataclass

import numpy as np

from minijepa.backend import column_sums, device_of, is_array, plain, sums, xp_of
from minijepa.errors import DeviceError, DtypeError, MinijepaError, ShapeError, TapeError
from minijepa.signature import Signature
from minijepa.tensor import FLOATS, Parameter, Tensor, as_float_array  # noqa: F401

KEEPS_DTYPE = "Python numbers keep the dtype, NumPy's scalars and arrays of another dtype don't, nor do comparisons"


def _as_array(value, complaint):
    """What an operation returned, as an array: NumPy turns results without axes into scalars."""
    if type(value) is np.ndarray:
        return value
    if is_array(value) or isinstance(value, np.generic):
        return plain(value)
    raise DtypeError(f"{complaint}; got {type(value).__name__}")


# ---------------------------------------------------------------------------------------------------------- operations


class Context:
    """What an operation's forward leaves for its backward.

    ``needs[i]``: whether the gradient of input i is needed; ``recorded``: whether any is. ``save(*arrays)`` keeps
    arrays for ``saved``, if the operation is recorded; anything else (an axis, a shape) is set as an attribute.
    """

    def __init__(self, needs):
        self.needs, self.recorded, self.saved = needs, any(needs), ()

    def save(self, *arrays):
        if self.recorded:
            self.saved = arrays


class Function:
    """An operation: a formula, its forward and its backward. Subclass it to write your own.

        class Square(Function):
            \"\"\"y = x²;  dx = 2x dy\"\"\"
            shapes = "(...) -> (...)"

            @staticmethod
            def forward(ctx, x):
                ctx.save(x)
                return x * x

            @staticmethod
            def backward(ctx, dy):
                (x,) = ctx.saved
                return (2 * x * dy,)

        y = Square.apply(x)

    ``forward(ctx, *arrays, **options)`` returns one array. ``backward(ctx, dy)`` returns a tuple with one slot per
    input: an array, or None for no gradient. The gradient of a broadcast input may keep the broadcast shape; the engine
    sums it. Neither method may write to its arguments, and ``backward`` must not write to the output; it may return
    ``dy`` itself or a view of it.

    ``shapes`` is checked at every call and shown in errors; :class:`minijepa.signature.Signature` has its grammar.
    """

    shapes = "(*)+ -> (*)"
    twin = None  # the same operation as CUDA kernels, if minijepa/kernels/ has registered one

    def __new__(cls, *inputs, **options):
        raise TapeError(f"{cls.__name__} is an operation and can't be instantiated: call {cls.__name__}.apply(...)")

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.signature, cls.twin = Signature(cls.shapes), None
        # In errors and printed tapes: LayerNorm is layer_norm, RMSNorm is rms_norm.
        cls.op_name = re.sub("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()

    @staticmethod
    def forward(ctx, *arrays, **options):
        raise NotImplementedError

    @staticmethod
    def backward(ctx, dy):
        raise NotImplementedError

    @classmethod
    def apply(cls, *inputs, **options):
        """Run forward on ``inputs`` (tensors, arrays, numbers, or None for an optional one); record it if needed."""
        inputs, dtype = as_tensors(cls, inputs)
        arrays = [None if t is None else t.data for t in inputs]
        shapes = tuple([None if a is None else a.shape for a in arrays])
        gradient_shapes = cls.signature.match(cls.op_name, shapes)

        tape = current_tape()
        ctx = Context(tuple([tape is not None and t is not None and t.requires_grad for t in inputs]))
        body = cls if cls.twin is None or not cls.twin.takes(*arrays, **options) else cls.twin
        try:
            y = body.forward(ctx, *arrays, **options)
        except MinijepaError:
            raise
        except (ValueError, IndexError) as error:  # NumPy's complaint where no signature can tell: reshape, concat
            cls.signature.fail(cls.op_name, shapes, str(error), cause=error)
        y = _as_array(y, f"{cls.op_name}: forward must return one array")
        if y.dtype != dtype:
            raise DtypeError(f"{cls.op_name}: forward was given {dtype} and returned {y.dtype}: {KEEPS_DTYPE}")

        output = Tensor(y, requires_grad=ctx.recorded)
        if ctx.recorded:
            tape.record(Entry(cls, body, ctx, inputs, gradient_shapes, output))
        return output


def as_tensors(op, inputs):
    """Inputs as tensors of one dtype on one device, and that dtype. Runs on every call, so it must be fast."""
    tensors = [x if x is None or isinstance(x, Tensor) else _tensor_beside(x, inputs) for x in inputs]
    arrays = [t.data for t in tensors if t is not None]
    first = arrays[0] if arrays else None
    for array in arrays:
        if array.dtype != first.dtype or (type(array) is not type(first) and device_of(array) != device_of(first)):
            _refuse_to_mix(op.op_name, arrays)
    return tensors, None if first is None else first.dtype


def _refuse_to_mix(name, arrays):
    """Raise the error of inputs that differ in dtype or device."""
    if len({a.dtype for a in arrays}) > 1:
        found = ", ".join(f"{a.dtype} {a.shape}" for a in arrays)
        raise DtypeError(f"{name}: its inputs are {found}; convert them to one dtype with array.astype")
    found = ", ".join(f"{device_of(a)} {a.shape}" for a in arrays)
    raise DeviceError(f"{name}: its inputs are on different devices ({found}); move them with to_device")


def _tensor_beside(x, inputs):
    """``x`` as a tensor; a number, a list or an integer array takes the dtype of the first input that has one."""
    floats = (t.data if isinstance(t, Tensor) else t for t in inputs)
    beside = next((plain(a) for a in floats if is_array(a) and a.dtype.newbyteorder("=") in FLOATS), None)
    return Tensor(as_float_array(x, beside))


# ---------------------------------------------------------------------------------------------------------------- tape


@dataclass(slots=True, eq=False, repr=False)
class Entry:
    """One line of a tape: which operation made which output from which inputs."""

    op: type
    body: type  # whose forward ran and whose backward will: the operation, or its CUDA twin
    ctx: Context
    inputs: list
    gradient_shapes: tuple  # of each input: its shape after broadcasting
    output: Tensor


class _Thread(threading.local):
    def __init__(self):  # runs once in every thread
        self.tape = None
        self.suspended = []  # by no_tape: a stack, because no_tape may be nested


_thread = _Thread()


def current_tape():
    """The tape that records this thread's operations, or None."""
    return _thread.tape


class no_tape:
    """Suspends the current tape: nothing inside is recorded, so no gradient can flow through it."""

    def __enter__(self):
        _thread.suspended.append(_thread.tape)
        _thread.tape = None

    def __exit__(self, *error):
        _thread.tape = _thread.suspended.pop()


class Tape:
    """The list of recorded operations, in execution order. Each thread has its own current tape.

    ``into``: where the gradients of leaves go. None: into each leaf's ``grad``. A dict {tensor: array}: into these
    arrays, such as a worker's own; missing leaves are added. Both accumulate.

    After ``backward``, ``reached`` is the set of leaves that received a gradient.
    """

    def __init__(self, into=None):
        self.entries = []
        self.into = into
        self.reached = set()
        self._used = False
        self._mark = object()  # what ties a tensor to this tape without keeping the tape alive

    def __enter__(self):
        if current_tape() is not None:
            raise TapeError("a tape is already recording in this thread: tapes don't nest; suspend it with no_tape()")
        if self._used:
            raise TapeError("this tape was used up by backward: make a new Tape()")
        _thread.tape = self
        return self

    def __exit__(self, *error):
        _thread.tape = None

    def record(self, entry):
        for x in entry.inputs:
            if self._used or (x is not None and x.requires_grad and x._mark not in (None, self._mark)):
                self._refuse_to_record(entry, x)
        entry.output._mark = self._mark
        self.entries.append(entry)

    def _refuse_to_record(self, entry, x):
        if self._used:
            raise TapeError(f"{entry.op.op_name}: this tape was used up by backward: make a new Tape()")
        raise TapeError(
            f"{entry.op.op_name}: an input of shape {x.shape} was recorded on another tape; "
            "compute it inside this one, or use x.detach() if no gradient should flow through it"
        )

    def backward(self, loss, cotangent=None):
        """Add d(loss)/d(leaf) to the gradient of every leaf that the recorded operations used.

        ``loss``: a tensor recorded here. ``cotangent``: the gradient to start from, in loss's shape; 1 for a scalar.
        Entries and what they saved are freed along the way, so a tape can be used only once. They saved the arrays
        themselves, not copies: writing to one before backward (``w.data -= ...`` between two losses of one tape) gives
        wrong gradients silently. :class:`minijepa.WatchingTape` detects it.
        """
        gradients = {id(loss): self._start(loss, cotangent)}  # of values whose entry is still to come
        self._used = True
        while self.entries:
            entry = self.entries.pop()
            dy = gradients.pop(id(entry.output), None)
            if dy is None:  # the loss does not depend on it
                continue
            for x, dx in zip(entry.inputs, self._gradients(entry, dy)):
                if dx is None:
                    continue
                if x._mark is None:  # no entry made it: a leaf, such as a parameter
                    self._add_to_leaf(x, dx)
                elif id(x) in gradients:  # not in place: what an operation returned may be another value's gradient too
                    gradients[id(x)] = xp_of(dx).asarray(gradients[id(x)] + dx)
                else:
                    gradients[id(x)] = dx

    def _start(self, loss, cotangent):
        """The gradient to start from: ``cotangent``, or 1 for a scalar loss."""
        if self._used or not isinstance(loss, Tensor) or loss._mark is not self._mark:
            self._refuse_to_start(loss)
        if cotangent is None and loss.size == 1:
            return xp_of(loss.data).ones_like(loss.data)
        return _as_cotangent(cotangent, loss)

    def _refuse_to_start(self, loss):
        if self._used:
            raise TapeError("this tape was used up by its first backward: record the computation again in a new Tape()")
        if not isinstance(loss, Tensor):
            raise TapeError(f"backward starts from a Tensor that was recorded on this tape, got {type(loss).__name__}")
        raise TapeError(
            f"the loss of shape {loss.shape} is not on this tape: it was computed outside of `with Tape()`, on "
            "another tape, or from inputs that require no gradient"
        )

    def _gradients(self, entry, dy):
        """The op's gradients, one for each input, checked and summed over broadcast axes."""
        try:
            gradients = entry.body.backward(entry.ctx, dy)
        except (ValueError, IndexError) as error:  # NumPy's complaint about shapes that don't fit; unpacking ctx.saved
            _refuse_backward(entry, dy, error)
        if not isinstance(gradients, tuple) or len(gradients) != len(entry.inputs):
            _refuse_slots(entry, gradients)
        results = []
        for i, (x, dx) in enumerate(zip(entry.inputs, gradients)):
            if dx is None or not entry.ctx.needs[i]:
                results.append(None)
                continue
            dx = _as_array(dx, f"{entry.op.op_name}: backward must return an array or None for input {i}")
            shapes = x.shape, entry.gradient_shapes[i]
            on_device = type(dx) is type(x.data) or device_of(dx) == device_of(x.data)
            if dx.shape not in shapes or dx.dtype != x.dtype or not on_device:
                _refuse_gradient(entry, i, x, dx)
            results.append(unbroadcast(dx, x.shape))
        return results

    def _add_to_leaf(self, leaf, gradient):
        self.reached.add(leaf)
        grad = leaf.grad if self.into is None else self.into.get(leaf)
        if grad is not None:
            if grad.shape != leaf.shape:
                raise ShapeError(f"the gradient kept for a leaf of shape {leaf.shape} has shape {grad.shape}")
            grad += gradient
        elif self.into is None:
            leaf.grad = gradient.copy()  # the op may have returned a view of an array that others use
        else:
            self.into[leaf] = gradient.copy()

    def lines(self):
        """(name, shapes of the inputs, shape of the output, bytes saved for backward) of each entry.

        An array that several entries save is counted once, at the first; arrays of leaves are not counted.
        """
        rows = []
        seen = {id(_owner(x.data)) for e in self.entries for x in e.inputs if x is not None and x._mark is None}
        for entry in self.entries:
            saved = 0
            for owner in (_owner(array) for array in entry.ctx.saved if is_array(array)):
                if id(owner) not in seen:
                    seen.add(id(owner))
                    saved += owner.nbytes
            shapes = " ".join("-" if x is None else _shape(x.shape) for x in entry.inputs)
            rows.append((entry.op.op_name, shapes, _shape(entry.output.shape), saved))
        return rows

    def __repr__(self):
        return "<Tape: used up by backward>" if self._used else f"<Tape, recorded operations: {len(self.entries)}>"

    def _repr_html_(self):
        from minijepa.pictures.notebook import tape_html

        return tape_html(None if self._used else self.lines())

    def __str__(self):
        """A table, one line per operation: number, name, shapes, bytes saved for backward."""
        if self._used:
            return "Tape: used up by backward"
        found = self.lines()
        rows = [("#", "operation", "inputs", "output", "saved")]
        rows += [(str(i), *words, f"{saved:,}") for i, (*words, saved) in enumerate(found)]
        rows.append(("", "", "", "bytes saved, each array once", f"{sum(row[3] for row in found):,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        align = ("{:>%d}  {:<%d}  {:<%d}  {:<%d}  {:>%d}" % tuple(widths)).format  # noqa: UP031
        return "\n".join(align(*row) for row in rows)


def _as_cotangent(cotangent, loss):
    """A copy of ``cotangent`` in the loss's dtype. Raises an error if its shape or device differs.

    A copy, because it may be a leaf's gradient, to which backward adds while the cotangent is still needed.
    """
    if cotangent is None:
        raise TapeError(
            f"backward from a tensor of shape {loss.shape}, which is not a scalar, needs a cotangent: "
            "tape.backward(y, dy) with dy of y's shape, or reduce y with sum() or mean()"
        )
    cotangent = cotangent.data if isinstance(cotangent, Tensor) else cotangent
    if is_array(cotangent) and device_of(cotangent) != device_of(loss.data):
        raise DeviceError(
            f"backward: the cotangent is on {device_of(cotangent)}, the tensor of shape {loss.shape} on "
            f"{device_of(loss.data)}; move it with to_device"
        )
    cotangent = xp_of(loss.data).array(as_float_array(cotangent, loss.data), dtype=loss.dtype)
    if cotangent.shape != loss.shape:
        raise ShapeError(f"backward: the cotangent has shape {cotangent.shape}, the tensor {loss.shape}")
    return cotangent


def _refuse_backward(entry, dy, error):
    kept = ", ".join(str(getattr(a, "shape", a)) for a in entry.ctx.saved) or "nothing"
    raise ShapeError(
        f"{entry.op.op_name}: backward, given dy {dy.shape}, with inputs {_shapes(entry.inputs)} and {kept} saved: "
        f"{error}"
    ) from error


def _refuse_slots(entry, gradients):
    found = f"a tuple of {len(gradients)}" if isinstance(gradients, tuple) else type(gradients).__name__
    remedy = ": return (dx,), with the comma" if is_array(gradients) and len(entry.inputs) == 1 else ""
    raise ShapeError(
        f"{entry.op.op_name}: backward must return a tuple of {len(entry.inputs)}, one slot per input "
        f"{_shapes(entry.inputs)}; got {found}{remedy}"
    )


def _refuse_gradient(entry, i, x, dx):
    start = f"{entry.op.op_name}: backward returned"
    if dx.shape not in (x.shape, entry.gradient_shapes[i]):
        raise ShapeError(
            f"{start} shape {dx.shape} for input {i}, whose shape is {x.shape}: "
            "a gradient holds dL/dx for each element of x, so it has x's shape"
        )
    if dx.dtype != x.dtype:
        raise DtypeError(f"{start} {dx.dtype} for input {i}, which is {x.dtype} {x.shape}: {KEEPS_DTYPE}")
    raise DeviceError(f"{start} an array on {device_of(dx)} for input {i}, which is on {device_of(x.data)}")


def _shapes(inputs):
    return ", ".join("None" if x is None else str(x.shape) for x in inputs)


def unbroadcast(gradient, shape):
    """Sum ``gradient`` over the axes along which an array of ``shape`` was broadcast.

    Broadcasting copies: y[i, j] = x[j] for every i. Each copy contributes to L, so dx[j] = Σᵢ dy[i, j]. Axes added in
    front disappear; axes stretched from length 1 are summed and kept.
    """
    if gradient.shape == shape:
        return gradient
    added = gradient.ndim - len(shape)
    if gradient.shape[added:] == shape and gradient.size:  # the usual case, a bias
        return column_sums(gradient.reshape(-1, math.prod(shape))).reshape(shape)
    stretched = tuple(i for i in range(added, gradient.ndim) if shape[i - added] == 1 and gradient.shape[i] != 1)
    return sums(gradient, axis=tuple(range(added)) + stretched).reshape(shape)


def _owner(array):
    """The array that owns the memory of ``array``."""
    return array.base if is_array(array.base) else array


def _shape(shape):
    return "×".join(map(str, shape)) or "scalar"
