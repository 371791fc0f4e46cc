"""Config: the presets, what is refused, and in which words."""

import dataclasses
import json

import numpy as np
import pytest

from minijepa import Config
from minijepa.config import PRESETS, parse_assignment
from minijepa.errors import ConfigError


def test_the_default_is_the_specifications_section_9():
    c = Config.preset("cifar10")
    assert c == Config()
    assert (c.image_size, c.patch_size, c.num_patches, c.grid) == (32, 4, 64, (8, 8))
    assert (c.encoder_embed_dim, c.encoder_depth, c.encoder_num_heads) == (192, 6, 6)
    assert (c.predictor_embed_dim, c.predictor_depth, c.predictor_num_heads) == (96, 4, 6)
    assert (c.num_target_blocks, c.target_scale, c.target_aspect_ratio) == (4, (0.15, 0.25), (0.75, 1.5))
    assert c.context_scale == (0.75, 0.95)
    assert (c.batch_size, c.epochs, c.base_lr, c.min_lr, c.warmup_epochs) == (256, 100, 1e-3, 1e-5, 10)
    assert (c.weight_decay, c.ema_momentum_start, c.ema_momentum_end) == (0.05, 0.996, 1.0)
    assert (c.adam_beta1, c.adam_beta2, c.adam_eps, c.layer_norm_eps) == (0.9, 0.999, 1e-8, 1e-6)
    assert (c.augment_flip, c.augment_crop, c.loss, c.target_norm) == (False, 0, "l2", "none")
    assert (c.augment_scale, c.patch_embed_gain, c.init_std) == ((1, 1), 1, 0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_survives_json(name):
    c = Config.preset(name, seed=4)
    assert Config.from_dict(json.loads(json.dumps(c.to_dict()))) == c
    assert c.seed == 4


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("epochs=3", ("epochs", 3)), ("base_lr = 1e-4", ("base_lr", 1e-4)), ("loss=smooth_l1", ("loss", "smooth_l1")),
        ("loss='l2'", ("loss", "l2")), ("target_scale=(0.1, 0.2)", ("target_scale", (0.1, 0.2))),
        ("target_scale=[.1,.2]", ("target_scale", [0.1, 0.2])), ("augment_flip=true", ("augment_flip", True)),
        ("augment_flip=False", ("augment_flip", False)), ("x=", ("x", "")), ("x=1e", ("x", "1e")),
        ("x=0x1" + "0" * 5000, ("x", "0x1" + "0" * 5000)),
    ],
)  # fmt: skip
def test_assignments(text, wanted):
    assert parse_assignment(text) == wanted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(epoch=3), "unknown setting 'epoch': did you mean epochs"),
        (dict(zzz=3), "unknown setting 'zzz'"),
        (dict(epochs=2.5), "epochs must be a whole number, got 2.5"),
        (dict(epochs="many"), "epochs must be a whole number"),
        (dict(epochs=True), "epochs must be a whole number"),
        (dict(base_lr=float("nan")), "base_lr must be a number"),
        (dict(loss=3), "loss must be a word"),
        (dict(augment_flip=1), "augment_flip must be true or false"),
        (dict(target_scale=0.2), "target_scale must be two numbers"),
        (dict(target_scale=(0.1, 0.2, 0.3)), "target_scale must be two numbers"),
        (dict(epochs=0), "epochs must be above 0"),
        (dict(batch_size=-4), "batch_size must be above 0"),
        (dict(base_lr=0), "base_lr must be above 0"),
        (dict(init_std=0), "init_std must be above 0"),
        (dict(init_std=11), "init_std must be at most 10, got 11"),
        (dict(patch_embed_gain=2000), "patch_embed_gain must be at most 1,000"),
        (dict(val_size=-1), "val_size must not be negative"),
        (dict(seed=-1), "seed must not be negative"),
        (dict(seed=2**64), "seed must be at most 18,446,744,073,709,551,615"),  # else it would be seed 0
        (dict(patch_size=5), "patch_size must divide image_size"),
        (dict(encoder_num_heads=5), "encoder_num_heads must divide encoder_embed_dim"),
        (dict(predictor_num_heads=5), "predictor_num_heads must divide predictor_embed_dim"),
        (dict(mlp_ratio=0.001), "no hidden features"),
        (dict(target_scale=(0.3, 0.2)), "must be .low, high. with"),
        (dict(context_scale=(0.5, 1.5)), "<= 1"),
        (dict(loss="l1"), "loss must be l2 or smooth_l1"),
        (dict(augment_scale=(0.5, 1.2)), "augment_scale must be .* <= 1"),
        (dict(target_norm="batch"), "target_norm must be none or layer_norm"),
        (dict(adam_beta2=1.0), r"adam_beta2 must be in \[0, 1\)"),
        (dict(ema_momentum_start=0.9, ema_momentum_end=0.8), "EMA momentum must rise"),
        (dict(ema_momentum_end=1.1), "EMA momentum must rise"),
        (dict(base_lr=1e-6), "min_lr 1e-05 must not exceed base_lr"),
        (dict(augment_crop=32), "augment_crop must be below image_size"),
        (dict(num_target_blocks=64), "the number of target blocks"),
    ],
)
def test_bad_settings_are_refused_with_the_reason(changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        Config.from_dict(changes)
    assert "\n" not in str(error.value)


def test_an_unknown_preset_names_the_others():
    with pytest.raises(ConfigError, match="cifar10, best, laptop, smoke"):
        Config.preset("large")


def test_whole_floats_do_for_ints_and_lists_for_tuples():
    c = Config(epochs=20.0, weight_decay=0, target_scale=[0.15, 0.2])
    assert (c.epochs, c.weight_decay, c.target_scale) == (20, 0.0, (0.15, 0.2))
    assert type(c.epochs) is int and type(c.weight_decay) is float
    c = Config(seed=np.int64(3), base_lr=np.float32(0.5), target_scale=tuple(np.array([0.125, 0.25])))
    assert (c.seed, c.base_lr, c.target_scale) == (3, 0.5, (0.125, 0.25)) and type(c.seed) is int
