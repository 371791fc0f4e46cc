"""The networks: the specification's seven gotchas, the whole loss against differences, names, packing."""

import copy
import dataclasses
import os
import pickle
import tracemalloc

import numpy as np
import pytest
from tiny import differentiate

from minijepa import IJEPA, Config, MultiBlockMasker, Parameter, Tape, Tensor, ops
from minijepa.config import LOSSES
from minijepa.data import Masks, normalise
from minijepa.errors import CheckpointError, ConfigError, DtypeError, ShapeError, TapeError, TrainingError
from minijepa.gradcheck.check import gradient_error, numeric_gradient
from minijepa.models import TokenLayout, ijepa
from minijepa.models.predictor import Predictor
from minijepa.nn import FlatParameters, Linear, Module
from minijepa.training.ema import update_ema
from minijepa.training.optim import AdamW

TINY = dict(
    image_size=8, patch_size=2, encoder_embed_dim=8, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=4,
    predictor_depth=1, predictor_num_heads=2, num_target_blocks=2, mlp_ratio=2.0, target_scale=(0.15, 0.25),
    min_context=2, warmup_epochs=0,
)  # fmt: skip


@pytest.fixture
def config():
    return Config(**TINY)


@pytest.fixture
def model(config):
    return lively(IJEPA(config, seed=3, dtype=np.float64))


def lively(model):
    """Weights far from their start, as after training: norms that scale, biases that shift, two different encoders."""
    draw = np.random.default_rng(5)
    for vector in (model.flat.data, model.target_flat.data):
        vector += 0.3 * draw.standard_normal(vector.size)
    return model


def images_of(batch, seed=0):
    size = TINY["image_size"]
    return np.random.default_rng(seed).standard_normal((batch, 3, size, size))


def masks_of(batch, seed=0):
    masker = MultiBlockMasker(grid=(4, 4), num_targets=2, min_context=2)
    return masker.sample(batch, np.random.default_rng(seed))


def loss_of(model, *args, **options):
    """The model's loss, after a backward pass from it."""
    return differentiate(lambda: model.loss(*args, **options))


# -------------------------------------------------------------------------------------- the specification's section 12


def test_gotcha_1_mask_tokens_need_position_information(model):
    """Two patches of one block get different predictions, and only because their positions differ."""
    assert model.predictor.mask_token.shape == (1, 1, TINY["predictor_embed_dim"])  # one shared vector
    images = images_of(1)
    masks = Masks.from_lists([[0, 1, 2]], [[[9, 10], [6]]])
    first, second, _ = model.predictions(images, masks).data
    assert np.abs(first - second).max() > 1e-3
    model.predictor.predictor_pos_embed.data[...] = 0  # the shared mask embedding alone is meaningless
    first, second, _ = model.predictions(images, masks).data
    np.testing.assert_allclose(first, second, atol=1e-12)


def test_gotcha_2_the_context_encoder_only_sees_context_patches(model):
    """Pixels outside of the context change no prediction, pixels inside change all of them."""
    context = [0, 1, 4, 5]
    masks = Masks.from_lists([context], [[[10, 11], [14]]])
    images = images_of(1)
    predictions = model.predictions(images, masks).data
    inside = np.isin(np.arange(16), context).reshape(4, 4).repeat(2, axis=0).repeat(2, axis=1)  # of the 8 × 8 pixels
    same_context = np.where(inside, images, images_of(1, seed=1))
    np.testing.assert_array_equal(model.predictions(same_context, masks).data, predictions)
    images[0, 0, 0, 0] += 1
    assert (np.abs(model.predictions(images, masks).data - predictions).max(axis=1) > 1e-6).all()


def test_gotcha_3_the_target_encoder_sees_the_full_image(model):
    """A target is a row of the full image's features: pixels far outside of the block change it."""
    images = images_of(2)
    masks = Masks.from_lists([[0, 1], [2, 3]], [[[10, 11], [14]], [[9], [4, 5]]])
    targets = model.targets(images, masks).data
    features = model.encode(images, "target").data
    np.testing.assert_allclose(targets, features[[0, 0, 0, 1, 1, 1], [10, 11, 14, 9, 4, 5]], atol=1e-12)
    images[0, :, 7, 0] += 1
    changed = np.abs(model.targets(images, masks).data - targets).max(axis=1)
    assert (changed[:3] > 1e-6).all() and (changed[3:] == 0).all()


def test_gotcha_4_no_gradients_through_the_target_encoder(model):
    """Neither the tape nor the optimiser ever reaches the target encoder, even when targets are computed on a tape; the
    EMA does, and follows by name (test_examples.py holds a whole step against the one-file I-JEPA)."""
    before = model.target_flat.data.copy()
    with Tape() as tape:
        targets = model.targets(images_of(2), masks_of(2))
        assert not tape.entries and not targets.requires_grad
        loss = model.loss(images_of(2), masks_of(2))
    tape.backward(loss)
    mine = set(model.flat.parameters.values())
    assert tape.reached <= mine
    assert all(p.grad is None for p in model.target_flat.parameters.values())
    AdamW(model.flat.data, model.flat.grad, model.decayed, 0.05).step(0.1)
    np.testing.assert_array_equal(model.target_flat.data, before)
    update_ema(model.target_flat.data, model.flat.data[: model.encoder_size], 0.9)
    assert np.abs(model.target_flat.data - before).max() > 0


def test_gotcha_5_batch_handling_of_variable_masks(model):
    """A packed batch of different lengths gives every image what it gets alone: loss, predictions and gradients."""
    images, masks = images_of(5), masks_of(5, seed=2)
    assert len(set(masks.context_lengths.tolist())) > 1 and len(set(masks.target_lengths.ravel().tolist())) > 1
    together = model.predictions(images, masks).data
    alone = [model.predictions(images[[i]], masks.select([i])).data for i in range(5)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-12)

    loss = loss_of(model, images, masks)
    gradients, total = model.gradients(), 0.0
    model.zero_grad()
    for i in range(5):
        part = loss_of(model, images[[i]], masks.select([i]), count=len(masks.target_index))
        total += part.item()
    assert total == pytest.approx(loss.item(), rel=1e-12)
    for name, gradient in model.gradients().items():
        np.testing.assert_allclose(gradient, gradients[name], atol=1e-12)


def test_gotcha_7_weight_decay_is_constant_and_spares_biases_norms_positions_and_the_mask_token(config):
    assert Config().weight_decay == 0.05
    model = lively(IJEPA(config, dtype=np.float64))
    before = model.flat.named(model.flat.data)
    optimizer = AdamW(model.flat.data, model.flat.grad, model.decayed, 0.05)
    for _ in range(3):  # gradients are zero: whatever moves, decays, and by the same factor in every step
        optimizer.step(0.1)
    for name, values in model.flat.named(model.flat.data).items():
        decays = name.endswith("weight") and "norm" not in name
        np.testing.assert_allclose(
            values, before[name] * (1 - 0.1 * 0.05) ** 3 if decays else before[name], err_msg=name
        )


# ----------------------------------------------------------------------------------------------- gradient of the whole


@pytest.mark.parametrize(
    "changes", [{}, {"loss": "smooth_l1", "target_norm": "layer_norm"}], ids=["as specified", "as in Meta's code"]
)
def test_the_whole_loss_against_differences_in_every_parameter(rng, changes):
    """Of each, a few elements; and along a random direction, to which every element contributes."""
    model = lively(IJEPA(Config(**TINY, **changes), seed=4, dtype=np.float64))
    images, masks = images_of(3), masks_of(3)
    errors = np.abs(model.predictions(images, masks).data - model.targets(images, masks).data)
    assert np.abs(errors - 1).min() > 1e-4  # smooth L1 bends at 1: a difference across the bend would be no derivative
    loss_of(model, images, masks)
    gradients = model.gradients()
    targets = model.targets(images, masks)  # they don't depend on what is trained

    def value():
        return model.distance(model.predictions(images, masks), targets).data

    for name, parameter in model.flat.parameters.items():
        some = rng.choice(parameter.size, min(4, parameter.size), replace=False)
        numeric = numeric_gradient(value, parameter.data, entries=some)
        before, direction, step = parameter.data.copy(), rng.standard_normal(parameter.shape), np.zeros(1)
        direction /= np.linalg.norm(direction)

        def moved(parameter=parameter, before=before, direction=direction, step=step):
            parameter.data[...] = before + step * direction
            return value()

        slope = numeric_gradient(moved, step)
        parameter.data[...] = before
        analytic = np.append(gradients[name].reshape(-1)[some], (gradients[name] * direction).sum())
        assert gradient_error(analytic, np.append(numeric, slope)) < 1e-6, name


# ---------------------------------------------------------------------------------------------------- names and shapes


def test_the_default_network_has_the_specifications_size():
    model = IJEPA(Config())
    encoder = 192 * 48 + 192 + 64 * 192 + 6 * (12 * 192**2 + 13 * 192) + 2 * 192
    predictor = 192 * 96 + 96 + 96 + 64 * 96 + 4 * (12 * 96**2 + 13 * 96) + 2 * 96 + 96 * 192 + 192
    assert (model.encoder_size, model.num_parameters()) == (encoder, encoder + predictor)


def test_the_state_survives_a_round_trip_and_is_a_copy(config, model):
    state = model.state_dict()
    other = IJEPA(config, seed=9, dtype=np.float64)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.encode(images_of(2)).data, model.encode(images_of(2)).data)
    np.testing.assert_array_equal(other.flat.data, model.flat.data)
    state["predictor.mask_token"][...] = 7
    assert not (model.predictor.mask_token.data == 7).any() and not (other.predictor.mask_token.data == 7).any()


def test_a_state_that_does_not_fit_changes_nothing(model):
    before = model.flat.data.copy()
    good = model.state_dict()
    for wrong, words in [
        ({k: v for k, v in good.items() if k != "predictor.mask_token"}, "lacks 1 .* predictor.mask_token"),
        (good | {"head.weight": np.ones(3)}, "unknown 1 .* head.weight"),
        (good | {"predictor.mask_token": np.ones((1, 1, 5))}, r"mask_token has shape \(1, 1, 5\)"),
        (good | {"predictor.predictor_proj.bias": good["predictor.predictor_proj.bias"] + 1j}, "real numbers"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            model.load_state_dict({k: v + 1 for k, v in wrong.items()})
    np.testing.assert_array_equal(model.flat.data, before)


def test_the_same_seed_gives_the_same_weights_and_both_encoders_start_equal(config):
    a, b, c = IJEPA(config, seed=1), IJEPA(config, seed=1), IJEPA(config, seed=2)
    np.testing.assert_array_equal(a.flat.data, b.flat.data)
    assert np.abs(a.flat.data - c.flat.data).max() > 0
    np.testing.assert_array_equal(a.flat.data[: a.encoder_size], a.target_flat.data)
    assert a.dtype == a.flat.data.dtype == np.float32


@pytest.mark.parametrize("std", [0.02, 0.08])
def test_initial_scales(std):
    """Weights truncated normal, positions and mask token normal 0.02, biases 0, norms 1, patches of variance 1."""
    state = IJEPA(Config(init_std=std)).state_dict()
    for name, values in state.items():
        if name.endswith("bias"):
            assert (values == 0).all(), name
        elif "norm" in name:
            assert (values == 1).all(), name
        elif "patch_embed" in name:
            assert values.std() == pytest.approx(1 / np.sqrt(48), rel=0.05), name
        elif "pos_embed" in name or "mask_token" in name:
            assert values.std() == pytest.approx(0.02, rel=0.25), name
        else:
            assert np.abs(values).max() <= 2 * std and values.std() == pytest.approx(0.88 * std, rel=0.05), name


# ------------------------------------------------------------------------------------------------ patches and packing


def test_the_layout_sorts_sequences_by_length_and_encodes_a_patch_of_two_blocks_once():
    layout = TokenLayout.of(Masks.from_lists([[0, 1, 2], [5]], [[[9], [10, 11]], [[3, 4], [3]]]), 16)
    assert layout.context_packing.lengths.tolist() == [1, 3]  # image 1, image 0
    assert layout.context_pixels.array.tolist() == [16 + 5, 0, 1, 2]
    # sequences (image, block): (1, 1) of 2 tokens, (1, 0) of 3, (0, 0) of 4, (0, 1) of 5
    assert layout.predictor_packing.lengths.tolist() == [2, 3, 4, 5]
    assert layout.target_rows.array.tolist() == [9, 10, 11, 16 + 3, 16 + 4]
    assert layout.target_features.array.tolist() == [0, 1, 2, 3, 4, 3]


def test_images_in_another_byte_order_or_as_lists_are_the_same_images(model):
    images = images_of(2)
    for same in (images.astype(images.dtype.newbyteorder()), images.tolist()):
        np.testing.assert_array_equal(model.encode(same).data, model.encode(images).data)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uint8_images_become_what_the_network_takes(config, dtype):
    model, images = IJEPA(config, dtype=dtype), np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    model.mean, model.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    assert model.normalise(images).dtype == dtype
    np.testing.assert_array_equal(model.normalise(images), normalise(images, model.mean, model.std))
    assert model.features(images).dtype == np.float32  # a network for checks too, at float64


@pytest.mark.parametrize("encoder", ["target", "context"])
def test_many_images_take_the_memory_of_a_chunk(config, encoder):
    """And have the features that each has alone."""
    model, images = lively(IJEPA(config)), images_of(400).astype(np.float32)
    alone = np.concatenate([model.encode(images[i : i + 1], encoder).data for i in (0, 15, 16, 399)])
    tracemalloc.start()
    peaks = []
    for count in (32, 400):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        features = model.encode(images[:count], encoder).data
        peaks.append(tracemalloc.get_traced_memory()[1] - before - features.nbytes)
        assert features.shape == (count, 16, 8)
    tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    np.testing.assert_allclose(features[[0, 15, 16, 399]], alone, atol=1e-5)


def test_features_are_those_of_the_patches_averaged_from_raw_images(config):
    model, images = lively(IJEPA(config)), np.random.default_rng(0).integers(0, 256, (35, 3, 8, 8), np.uint8)
    for encoder in ("target", "context"):
        features = model.features(images, encoder, threads=2)
        with Tape() as tape:
            np.testing.assert_array_equal(model.features(images, encoder, threads=1), features)
        assert not tape.entries
        assert features.dtype == np.float32 and isinstance(features, np.ndarray)
        expected = model.encode(model.normalise(images), encoder).data.mean(axis=1)
        np.testing.assert_allclose(features, expected, atol=1e-6)
    assert model.features(images[:0]).shape == (0, 8)
    with pytest.raises(DtypeError, match="is it normalised already"):
        model.features(model.normalise(images))


def test_features_of_the_last_blocks_are_those_of_encoders_that_end_there(config):
    config = dataclasses.replace(config, encoder_depth=3)
    model, images = lively(IJEPA(config)), np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    for blocks in (1, 2, 3):
        expected = []
        for depth in range(4 - blocks, 4):
            shorter = IJEPA(dataclasses.replace(config, encoder_depth=depth))
            names = shorter.state_dict()
            shorter.load_state_dict({name: value for name, value in model.state_dict().items() if name in names})
            expected.append(shorter.features(images))
        np.testing.assert_array_equal(model.features(images, blocks=blocks), np.concatenate(expected, axis=1))
    for blocks in (0, 4):
        with pytest.raises(ConfigError, match=f"^--blocks {blocks}: the encoder has 3 blocks$"):
            model.features(images, blocks=blocks)


def test_a_gradient_through_many_images_is_recorded_as_one(config):
    model, images = lively(IJEPA(config)), images_of(20).astype(np.float32)
    differentiate(lambda: model.encode(images, "context").sum())
    assert np.abs(model.gradients()["context_encoder.patch_embed.proj.weight"]).max() > 0


# ------------------------------------------------------------------------------------------- modules, flat parameters


def test_a_module_finds_its_parameters_in_attributes_modules_lists_tuples_and_dicts(rng):
    class Nested(Module):
        def __init__(self):
            self.first, self.scale, self.width = Linear(2, 2, rng, 1.0), Parameter([2.0]), 3
            self.blocks = [[Linear(2, 2, rng, 1.0)], (Parameter([0.0]),)]
            self.heads = {"a": Linear(2, 1, rng, 1.0), "b": {"c": Parameter([1.0])}}
            self.words, self.sizes = {"not": "a parameter"}, [1, 2]

        def forward(self, x):
            return x * self.scale

    assert [name for name, _ in Nested().named_parameters()] == [
        "first.weight", "first.bias", "scale", "blocks.0.0.weight", "blocks.0.0.bias", "blocks.1.0", "heads.a.weight",
        "heads.a.bias", "heads.b.c",
    ]  # fmt: skip
    assert Nested()(Tensor([3.0])).item() == 6.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_what_a_forked_process_does_to_a_model_stays_there(config):
    model = IJEPA(config)
    before = model.flat.data.copy()
    if (process := os.fork()) == 0:
        model.flat.data[...] = model.target_flat.data[...] = 0
        os._exit(0)
    os.waitpid(process, 0)
    assert (model.flat.data == before).all() and model.target_flat.data.any()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_model_copied_with_its_optimizer_trains_alike_and_leaves_the_original_alone(config, duplicate):
    model, images, masks = IJEPA(config), images_of(2).astype(np.float32), masks_of(2)
    pair = model, AdamW(model.flat.data, model.flat.grad, model.decayed, 0.05)
    copied, before = duplicate(pair), model.state_dict()
    twin = copied[0]
    for trained, optimizer in (copied, pair):
        loss = loss_of(trained, images, masks)
        optimizer.step(1e-2)
        update_ema(trained.target_flat.data, trained.flat.data[: trained.encoder_size], 0.5)
        trained.flat.check_tied()
        if trained is twin:
            np.testing.assert_equal(model.state_dict(), before)
    assert twin.loss(images, masks).item() == model.loss(images, masks).item() != loss.item()
    np.testing.assert_equal(twin.state_dict(), model.state_dict())


def test_a_parameter_that_is_shared_is_trained_once_under_its_first_name():
    weight, bias = Parameter([1.0, 2.0]), Parameter([3.0])
    flat = FlatParameters([("a", weight), ("b", bias), ("c", weight)], np.float32, "cpu")
    assert flat.data.tolist() == [1, 2, 3] and list(flat.parameters) == ["a", "b"] and weight.name == "a"
    differentiate(lambda: (weight * weight).sum() + bias.sum())
    assert flat.grad.tolist() == [2, 4, 1]


def test_what_decays_is_right_where_layers_are_shared(monkeypatch):
    class Shared(Predictor):
        def __init__(self, config, rng):
            super().__init__(config, rng)
            self.predictor_blocks = [self.predictor_blocks[0]] * 2

    monkeypatch.setattr("minijepa.models.ijepa.Predictor", Shared)
    shared = IJEPA(Config(**(TINY | dict(predictor_depth=2))))
    monkeypatch.undo()
    alone = IJEPA(Config(**TINY))
    assert shared.decayed == alone.decayed and list(shared.flat.slices) == list(alone.flat.slices)


def test_a_parameter_that_was_given_another_array_is_noticed():
    """``p.data = ...`` and ``p.grad = None`` leave the flat vectors; the parameter would never be trained again."""
    for change, words in (
        (lambda p: setattr(p, "data", p.data - 1.0), "was given a new array: write into its own"),
        (lambda p: setattr(p, "grad", None), "was replaced by another array: clear it with zero_grad"),
        (lambda p: setattr(p, "grad", np.zeros_like(p.data)), "was replaced by another array"),
    ):
        model = IJEPA(Config(**TINY))
        parameter = model.context_encoder.norm.weight
        parameter.data -= 1.0
        parameter.data[...] = 2.0
        parameter.zero_grad()
        model.zero_grad()
        copy.deepcopy(model).zero_grad()
        pickle.loads(pickle.dumps(model, protocol=5)).zero_grad()
        change(parameter)
        with pytest.raises(TrainingError, match=f"context_encoder.norm.weight {words}"):
            model.zero_grad()


@pytest.mark.parametrize("values", [np.ma.masked_array([1.0, 2.0]), np.ones(2, complex), np.array(["1", "2"])])
def test_a_state_without_real_numbers_is_refused(values):
    module = Module()
    module.weight = Parameter([0.0, 0.0])
    with pytest.raises(CheckpointError, match="^weight: a (masked array|Tensor holds real numbers)"):
        module.load_state_dict({"weight": values})


# ------------------------------------------------------------------------------------------------------- the last block


@pytest.mark.parametrize("keep", [[0, 3, 4], [6], [5, 2, 2, 0], list(range(7))])
def test_a_block_asked_for_some_rows_gives_these_rows(model, keep):
    """In value and in every gradient: what is not kept is not computed, and nothing else changes."""
    block = model.context_encoder.blocks[0]
    draw = np.random.default_rng(0)
    x, dy, keep = Parameter(draw.standard_normal((7, 8))), draw.standard_normal((len(keep), 8)), np.array(keep)
    found = []
    packing = ops.Packing([3, 4])
    for function in (lambda: block(x, packing, keep), lambda: ops.rows(block(x, packing), keep)):
        gradients = {}
        y = differentiate(function, dy, into=gradients)
        found.append((y.data, gradients))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-12)
    assert found[0][1].keys() == found[1][1].keys() == {x, *(p for _, p in block.named_parameters())}
    for parameter, gradient in found[0][1].items():
        np.testing.assert_allclose(gradient, found[1][1][parameter], atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ bad input


MASKED = np.ma.masked_array(images_of(2), images_of(2) > 0)


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda m: m.encode(np.zeros((2, 3, 9, 9))), ShapeError, r"\(B, 3, 8, 8\), was given \(2, 3, 9, 9\)"),
    (lambda m: m.encode(np.zeros((2, 3, 8, 8), np.uint8)), DtypeError, "was given uint8: normalise"),
    (lambda m: m.encode(Tensor(images_of(2), requires_grad=True)), TapeError,
     "does not differentiate with respect to its images"),
    (lambda m: m.encode(MASKED), DtypeError, "a masked array would lose its mask"),
    (lambda m: m.features(MASKED.astype(np.uint8)), DtypeError, "a masked array would lose its mask"),
    (lambda m: m.encode(images_of(1), "foo"), ConfigError, "unknown encoder 'foo': choose target or context"),
    (lambda m: m.loss(images_of(2)[:0], masks_of(2).select([])), ShapeError, "at least one image"),
    (lambda m: m.loss(images_of(1), Masks.from_lists([[0, 1]], [[[16], [2]]])), ShapeError,
     "the masks name patches 2 to 16 of 0 to 15"),
    *((lambda m, f=f, n=n: getattr(m, f)(images_of(n), masks_of(6 - n)), ShapeError,
       f"given {n} images, but masks of {6 - n}") for f in ("loss", "targets", "predictions") for n in (2, 4)),
])  # fmt: skip
def test_bad_input_is_refused(model, call, error, words):
    with pytest.raises(error, match=words):
        call(model)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_reported_per_dimension(name):
    """Twice as wide features with the same errors have the same loss a dimension, whether the loss adds them up."""
    assert {*LOSSES} == {*ijepa.LOSSES}
    p, q = np.random.default_rng(0).normal(size=(2, 6, 8))
    told = []
    for times in (1, 2):
        model = IJEPA(Config(**TINY | dict(encoder_embed_dim=8 * times, loss=name)))
        told.append(model.loss_per_dim(model.distance(Tensor(np.tile(p, times)), Tensor(np.tile(q, times))).item()))
    assert told[0] == pytest.approx(told[1]) and 0.1 < told[0] < 10
