"""The target encoder's only way to change."""

import numpy as np

from minijepa import kernels
from minijepa.backend import is_array, xp_of


def update_ema(target, source, momentum):
    """θ̄ ← momentum θ̄ + (1 − momentum) θ, in place, over flat vectors of equal length (specification, 2.2).

    With momentum exactly 1 the target stays as it is, bit for bit. ``momentum`` may lie on a GPU, as an array of
    momentum and 1 − momentum.
    """
    if kernels.serve(target, source):
        if not is_array(momentum):
            momentum = xp_of(target).asarray(np.array([momentum, 1 - momentum], np.float32))
        kernels.ema(target, source, momentum)
        return
    target *= momentum
    target += (1 - momentum) * source
