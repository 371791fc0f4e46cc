"""The target encoder's only way to change, and how fast it does."""

from minijepa.backend import has_twin


@has_twin
def update_ema(target, source, momentum):
    """θ̄ ← momentum θ̄ + (1 − momentum) θ, in place, over flat vectors of equal length (specification, 2.2).

    With momentum exactly 1 the target stays as it is, bit for bit.
    """
    target *= momentum
    target += (1 - momentum) * source


def ema_momentum(step, total_steps, start, end):
    """Linear from exactly ``start`` at the first step to exactly ``end`` at the last, and after it."""
    progress = min(1.0, step / max(1, total_steps - 1))
    return start * (1 - progress) + end * progress
