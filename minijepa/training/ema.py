"""The target encoder's only way to change."""

from minijepa.backend import has_twin


@has_twin
def update_ema(target, source, momentum):
    """θ̄ ← momentum θ̄ + (1 − momentum) θ, in place, over flat vectors of equal length (specification, 2.2).

    With momentum exactly 1 the target stays as it is, bit for bit.
    """
    target *= momentum
    target += (1 - momentum) * source
