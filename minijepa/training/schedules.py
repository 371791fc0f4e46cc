"""Learning rate and EMA momentum as functions of the step (specification, section 9)."""

import math


def learning_rate(step, total_steps, warmup_steps, base_lr, min_lr):
    """Linear warm-up to ``base_lr``, then a cosine to ``min_lr``, which the last step has if two or more follow it.

    step s of S, with W warm-up steps:
        s < W:   base_lr (s + 1) / (W + 1)
        s ≥ W:   min_lr + ½ (base_lr − min_lr) (1 + cos(π (s − W) / (S − 1 − W)))
    """
    if step < warmup_steps:
        return base_lr * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * min(1.0, progress)))


def ema_momentum(step, total_steps, start, end):
    """Linear from exactly ``start`` at the first step to exactly ``end`` at the last, and behind it."""
    progress = min(1.0, step / max(1, total_steps - 1))
    return start * (1 - progress) + end * progress
