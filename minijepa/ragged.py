"""Index arithmetic for parts of different lengths that stand one behind another in one array."""

import numpy as np


def starts_of(lengths):
    """Where each part begins: (n,) -> (n,)."""
    return np.cumsum(lengths) - lengths


def ranges(starts, lengths):
    """start, start + 1, ... start + length − 1 for each pair, one behind another: (n,), (n,) -> (Σ lengths,)."""
    return np.repeat(starts - starts_of(lengths), lengths) + np.arange(lengths.sum())
