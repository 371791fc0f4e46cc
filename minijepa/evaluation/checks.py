"""Checks of features and labels, and a map over blocks of rows with threads."""

import numpy as np

from minijepa.backend import plain
from minijepa.backend.threads import available_cores, on_threads
from minijepa.errors import DataError, DtypeError, ShapeError
from minijepa.tensor import as_float_array

MAX_THREADS = min(available_cores(), 16)  # each holds a block of kNN similarities, up to 100 MB


def map_rows(function, *arrays, block_rows=None, ahead=1000):
    """Yield function(*blocks) for consecutive blocks of rows of the arrays, in order; threads compute them.

    The blocks depend on the shape alone, so sums taken in order have the same bits for every number of threads.
    ``ahead``: how many results a thread computes before they are taken; few if they are large.
    """
    block_rows = block_rows or max(256, 2**18 // arrays[0].shape[1])  # about 1 MiB: used twice while in the cache
    starts = range(0, len(arrays[0]), block_rows)
    wave = ahead * MAX_THREADS
    for first in range(0, len(starts), wave):
        some = starts[first : first + wave]
        yield from on_threads(lambda i: function(*(a[i : i + block_rows] for a in arrays)), some, MAX_THREADS)


def checked(train_x, train_y, test_x, test_y, num_classes):
    """Features and labels to learn from and to evaluate on, after checking that all fit together."""
    train_x = checked_features(train_x, "training")
    train_y = checked_labels(train_y, len(train_x), num_classes, "training labels")
    test_x = checked_features(test_x, "test")
    test_y = checked_labels(test_y, len(test_x), num_classes, "test labels")
    if train_x.shape[1] != test_x.shape[1]:  # of different kinds of model
        raise DataError(f"training rows have {train_x.shape[1]} features, others {test_x.shape[1]}: use one encoder")
    return train_x, train_y, test_x, test_y


def checked_features(x, name):
    """x as float32 (or float64 if it is that), after checking that it is a non-empty finite matrix of real numbers."""
    try:
        x = as_float_array(x)
    except (DtypeError, ShapeError) as error:  # complex, masked, ragged ...
        raise DataError(f"{name} features: {error}") from None
    if x.ndim != 2 or x.size == 0:
        raise DataError(f"{name} features have shape {x.shape}: expected (samples, features), at least one of each")
    if bad := np.count_nonzero(~np.isfinite(x).all(axis=1)):
        raise DataError(f"{bad} of {len(x)} rows of the {name} features contain NaN or infinity: the model diverged")
    return x


def checked_labels(y, rows, num_classes, name):
    """y as integers, after checking that there is one for each row and that all lie in 0 ... num_classes − 1."""
    try:
        y = plain(y)
    except DtypeError as error:
        raise DataError(f"{name}: {error}") from None
    if y.shape != (rows,):
        raise DataError(f"{name} have shape {y.shape} for {rows} rows of features: expected ({rows},)")
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name} are {y.dtype}: expected integers")
    if y.min() < 0 or y.max() >= num_classes:
        raise DataError(f"{name} run from {y.min()} to {y.max()}: expected 0 to {num_classes - 1}")
    return y.astype(np.int64)
