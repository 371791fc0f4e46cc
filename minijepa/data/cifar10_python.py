"""The files of CIFAR-10's Python version, which torchvision leaves in a data folder: read without running a pickle.

Each is a pickled dictionary that Python 2 wrote: ``data``, a NumPy array uint8 (n, 3072), and ``labels``, a list.
Unpickling calls whatever the file names. So the three names in such a file get stand-ins here, which keep what they are
given; other names are refused, and so are operations that such a file does not use.
"""

import pickle

import numpy as np

PIXELS = 3 * 32 * 32


class _StandIn:
    """For an array or a dtype: keeps what makes it. An array's state is (1, shape, dtype, Fortran order, bytes)."""

    def __init__(self, *args):
        self.args = args

    def __setstate__(self, state):
        self.state = state


class _Reader(pickle._Unpickler):  # the pure-Python one, which has a table of its operations
    OPERATIONS = (
        b"\x80}])(.N\x88\x89JKM\x8aTUX"  # protocol, {}, [], (), mark, stop, None, True, False, integers, strings
        b"easut\x85\x86\x87qrhjcRb"  # into lists, dicts and tuples; into the memo and from it; name, call, set state
    )
    dispatch = {operation: pickle._Unpickler.dispatch[operation] for operation in OPERATIONS}
    NAMES = ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")

    def find_class(self, module, name):
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which CIFAR-10 does not use")
        return _StandIn


def read_records(file):
    """The records of an open file, as in the binary version: uint8 (n, 3073), label, then pixels.

    Raises ValueError for any other file.
    """
    try:
        content = _Reader(file, encoding="bytes").load()
        labels, (_, shape, dtype, fortran, pixels) = content[b"labels"], content[b"data"].state
        fits = shape == (len(labels), PIXELS) and len(pixels) == len(labels) * PIXELS and not fortran
        if not fits or dtype.args[0] not in (b"u1", "u1") or {type(label) for label in labels} - {int}:
            raise ValueError("its data are not uint8 images with one label each")
        images = np.frombuffer(pixels, np.uint8).reshape(shape)
        return np.concatenate([np.array(labels, np.uint8)[:, None], images], axis=1)
    except ValueError:
        raise
    except Exception as error:  # a damaged or different pickle can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"it is not a pickle of CIFAR-10 ({reason})") from None
