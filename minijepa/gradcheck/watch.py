"""A tape for debugging: it detects arrays that are changed in place between forward and backward."""

import zlib

import numpy as np

from minijepa.autograd import Tape
from minijepa.backend import is_array, to_numpy
from minijepa.errors import TapeError


class WatchingTape(Tape):
    """A :class:`Tape` that refuses to compute gradients from arrays that changed after forward.

    Backward passes use the arrays that forward kept, not copies of them. Writing to one in between (``w.data -= 1``, a
    reused buffer) gives wrong gradients with a :class:`Tape`, and with this one a TapeError that names the operation.
    It reads every kept array twice more: for tests and debugging, gradcheck and explain.
    """

    def record(self, entry):
        super().record(entry)
        entry.ctx._kept = [(array, _checksum(array)) for array in _arrays(vars(entry.ctx))]

    def _gradients(self, entry, dy):
        for array, checksum in entry.ctx._kept:
            if _checksum(array) != checksum:
                raise TapeError(
                    f"{entry.op.op_name}: {_which(array, entry)}, of shape {array.shape}, was changed in place after "
                    "forward, but backward needs its old values: write to a copy, or only after backward"
                )
        return super()._gradients(entry, dy)


def _arrays(value):
    """The arrays that an operation keeps, also in tuples, lists, dicts and objects such as a RowIndex."""
    if is_array(value):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _arrays(item)
    elif type(value).__module__.startswith("minijepa.") and hasattr(value, "__dict__"):
        yield from _arrays(vars(value))


def _checksum(array):
    return zlib.crc32(np.ascontiguousarray(to_numpy(array)))


def _which(array, entry):
    if array is entry.output.data:
        return "its output"
    inputs = (i for i, x in enumerate(entry.inputs) if x is not None and x.data is array)
    return next((f"its input {i}" for i in inputs), "an array that it kept")
