"""AdamW over one flat vector (Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, arXiv:1711.05101)."""

import math

from minijepa.backend import has_twin, row_blocks, xp_of


@has_twin
def squared_norm(vector):
    """Σ x²; on a GPU a 0-d array, not synchronised."""
    return xp_of(vector).vdot(vector, vector)


class AdamW:
    """Adam with decoupled weight decay.

        m ← β₁ m + (1 − β₁) g            m̂ = m / (1 − β₁ᵗ)
        v ← β₂ v + (1 − β₂) g²           v̂ = v / (1 − β₂ᵗ)
        θ ← θ − lr λ θ                   where decay applies
        θ ← θ − lr m̂ / (√v̂ + eps)

    ``data``, ``grad``: the flat vectors of values and gradients; ``decayed``: the slices of them that decay.
    """

    def __init__(self, data, grad, decayed, weight_decay, beta1=0.9, beta2=0.999, eps=1e-8):
        self.data, self.grad, self.decayed, self.weight_decay = data, grad, decayed, weight_decay
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.m, self.v = xp_of(data).zeros_like(data), xp_of(data).zeros_like(data)
        self.steps = 0

    def step(self, lr):
        """One update with learning rate ``lr``."""
        self.update(self.begin_step(self.steps, lr))

    def begin_step(self, step, lr):
        """Begin step number ``step``, counted from 0; return the scalars of its :meth:`update`, (rate, eps, decay)."""
        self.steps = step + 1
        # lr m̂ / (√v̂ + eps) = rate m / (√v + eps'): both bias corrections in two numbers
        correction = math.sqrt(1 - self.beta2**self.steps)
        return lr * correction / (1 - self.beta1**self.steps), self.eps * correction, 1 - lr * self.weight_decay

    @has_twin
    def update(self, scalars):
        """One update with the scalars of :meth:`begin_step`."""
        xp = xp_of(self.data)
        rate, eps, decay = scalars
        for part in self.decayed:
            self.data[part] *= decay
        for theta, g, m, v in row_blocks(*(x[:, None] for x in (self.data, self.grad, self.m, self.v))):
            m *= self.beta1
            m += (1 - self.beta1) * g
            v *= self.beta2
            v += (1 - self.beta2) * (g * g)
            theta -= m / (xp.sqrt(v) + eps) * rate


def learning_rate(step, total_steps, warmup_steps, base_lr, min_lr):
    """Linear warm-up to ``base_lr``, then a cosine to ``min_lr`` at the last step (if two or more follow the warm-up).

    step s of S, with W warm-up steps:
        s < W:   base_lr (s + 1) / (W + 1)
        s ≥ W:   min_lr + ½ (base_lr − min_lr) (1 + cos(π (s − W) / (S − 1 − W)))
    """
    if step < warmup_steps:
        return base_lr * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * min(1.0, progress)))
