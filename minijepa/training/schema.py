"""The checks of a checkpoint's fields and arrays, before use, so that no odd file ends in a traceback."""

import numpy as np

from minijepa.errors import CheckpointError

LARGEST = float(np.finfo(np.float32).max)


def whole(value):
    return type(value) is int and 0 <= value < 2**53


def numbers(values, least, most):
    """Whether all values are floats within these bounds; NaN is not."""
    return all(type(x) is float and least <= x <= most for x in values)


def three(least, most):
    """A check for a number for each of three channels."""
    return lambda value: type(value) is list and len(value) == 3 and numbers(value, least, most)


FIELDS = {  # of every file
    "format": whole, "config": lambda value: type(value) is dict, "dataset": lambda value: type(value) is str,
    "step": whole, "mean": three(0, 1), "std": three(1e-6, 1),
}  # fmt: skip


def check_fields(about, fields):
    """Raise CheckpointError unless ``about`` has exactly the fields of FIELDS and ``fields``, {name: check}."""
    fields = FIELDS | fields
    for name in sorted(fields.keys() | about.keys()):
        if name not in fields or name not in about:
            raise CheckpointError(f"it {'lacks the' if name in fields else 'has an unknown'} field {name:.50}")
        if not fields[name](about[name]):
            raise CheckpointError(f"its field {name} is {about[name]!r:.100}")


def check_arrays(arrays, dtypes, count, expected):
    """Raise CheckpointError unless all arrays hold finite numbers of one of the ``dtypes``.

    ``count`` is the number of parameters in the file, ``expected`` the number by its settings: a network is built from
    settings only if the file has parameters for it.
    """
    for name, values in arrays.items():
        if values.dtype not in dtypes or not float(np.abs(values).max(initial=0)) <= LARGEST:
            raise CheckpointError(f"{name} must hold finite numbers of {' or '.join(np.dtype(d).name for d in dtypes)}")
    if count != expected:
        raise CheckpointError(f"its settings require {expected:,} parameters, but it holds {count:,}")
