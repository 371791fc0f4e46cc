"""Learning rate, momentum, AdamW and EMA, against their formulas."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from minijepa import backend
from minijepa.config import PRESETS, Config
from minijepa.training.ema import ema_momentum, update_ema
from minijepa.training.optim import AdamW, learning_rate
from minijepa.training.trainer import Trainer


def test_the_learning_rate_of_very_short_runs():
    assert learning_rate(0, 1, 0, 1e-3, 1e-5) == 1e-3
    assert [learning_rate(s, 2, 0, 1.0, 0.0) for s in range(2)] == [1.0, pytest.approx(0.0)]


def metas_rates(warmup, ref_lr, final_lr, total_steps):
    """The rates of Meta's I-JEPA code, which counts before each step: its warm-up of W + 1 steps is one of W."""
    for count in range(1, total_steps + 1):
        progress = (count - warmup) / max(1, total_steps - warmup)
        cosine = final_lr + (ref_lr - final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
        yield count / max(1, warmup) * ref_lr if count < warmup else max(final_lr, cosine)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("changes", [{}, {"epochs": 1}, {"epochs": 5}, {"warmup_epochs": 0}])
def test_the_rate_of_a_whole_run_is_that_of_metas_code_with_one_more_step_of_warm_up(preset, changes):
    c = Config.preset(preset, **changes)
    per_epoch = (c.max_train_images or 50_000) // c.batch_size
    run = SimpleNamespace(config=c, steps_per_epoch=per_epoch, total_steps=per_epoch * c.epochs)
    warmup = round(c.warmup_epochs * per_epoch)
    ours = [Trainer.learning_rate(run, step) for step in range(run.total_steps)]
    np.testing.assert_allclose(ours, list(metas_rates(warmup + 1, c.base_lr, c.min_lr, run.total_steps)), rtol=1e-12)
    assert max(ours) == ours[warmup] == c.base_lr and ours[-1] == pytest.approx(c.min_lr)


def test_the_momentum_is_linear_with_exact_ends():
    values = [ema_momentum(step, 11, 0.9, 1.0) for step in range(11)]
    assert (values[0], values[-1]) == (0.9, 1.0)
    np.testing.assert_allclose(values, np.linspace(0.9, 1.0, 11))
    assert ema_momentum(0, 1, 0.9, 1.0) == 0.9
    assert ema_momentum(50, 11, 0.9, 1.0) == 1.0  # steps that are only measured may go on past the last


def textbook_adamw(theta, gradients, decays, lr, decay, beta1, beta2, eps):
    m = v = np.zeros_like(theta)
    for t, g in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        theta = theta - lr * decay * theta * decays
        theta = theta - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return theta


@pytest.mark.parametrize("block", [3, 1 << 16])  # a block's end inside of the vector, and beyond it
def test_adamw_is_the_formula(rng, monkeypatch, block):
    monkeypatch.setattr(backend, "BLOCK", block)
    theta, grad = rng.standard_normal(10), np.zeros(10)
    gradients = [rng.standard_normal(10) * 10.0**k for k in range(-3, 3)]
    decays = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 1])
    data = theta.copy()
    optimizer = AdamW(data, grad, (slice(0, 3), slice(8, 10)), 0.05, 0.8, 0.95, 1e-4)
    for g in gradients:
        grad[...] = g
        optimizer.step(0.01)
    np.testing.assert_allclose(
        data, textbook_adamw(theta, gradients, decays, 0.01, 0.05, 0.8, 0.95, 1e-4), rtol=1e-12
    )  # fmt: skip


def test_the_ema_moves_a_part_of_the_way_and_stands_still_at_one(rng):
    target, source = rng.standard_normal(5).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    before = target.copy()
    update_ema(target, source, 1.0)
    np.testing.assert_array_equal(target, before)
    update_ema(target, source, 0.75)
    np.testing.assert_allclose(target, 0.75 * before + 0.25 * source, rtol=1e-6)
    update_ema(target, source, 0.0)
    np.testing.assert_array_equal(target, source)
