"""Index arithmetic for parts of different lengths that stand one behind another in one array."""

import numpy as np


def offsets_of(lengths):
    """Where each part begins, and where the last one ends: (...) with n elements -> (n + 1,), [0, l₀, l₀ + l₁, ...]."""
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def starts_of(lengths):
    """Where each part begins: (n,) -> (n,)."""
    return offsets_of(lengths)[:-1]


def ranges(starts, lengths):
    """start, start + 1, ... start + length − 1 for each pair, one behind another: (n,), (n,) -> (Σ lengths,)."""
    return np.repeat(starts - starts_of(lengths), lengths) + np.arange(lengths.sum())
