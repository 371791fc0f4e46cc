"""What pictures show, in numbers: principal components, colours, nearest patches, predicted blocks."""

import numpy as np
import pytest
from tiny import NETWORK

from minijepa import IJEPA, Config
from minijepa.data import MultiBlockMasker, make_shapes, normalise, one_of_each_class
from minijepa.evaluation.evaluate import ProbedEncoder
from minijepa.evaluation.gallery import centred_neighbours, patch_colours
from minijepa.evaluation.logistic import Curvature, fit
from minijepa.evaluation.neighbours import nearest_neighbours
from minijepa.evaluation.patches import (
    central_blocks,
    closest_rows,
    colours_of,
    component_places,
    extract_patches,
    patch_maps,
    predicted_blocks,
    principal_components,
    target_patches,
)
from minijepa.evaluation.probing import linear_probe, standardised, statistics
from minijepa.models import Classifier
from minijepa.models.vit import patchify

SETTINGS = NETWORK | dict(target_norm="layer_norm")


@pytest.fixture(scope="module")
def model():
    model = IJEPA(Config(**SETTINGS), seed=3)
    draw = np.random.default_rng(0)
    model.target_flat.data += 0.1 * draw.standard_normal(model.target_flat.data.shape, np.float32)
    return model


@pytest.fixture(scope="module")
def images():
    return make_shapes(40, seed=5)[0]


# ------------------------------------------------------------------------------------------------ principal components


def test_components_are_those_of_the_singular_value_decomposition(rng):
    x = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12)) + 3
    mean, axes = principal_components(x)
    np.testing.assert_allclose(mean, x.mean(axis=0))
    for found, wanted in zip(axes, np.linalg.svd(x - mean)[2][:3]):
        np.testing.assert_allclose(found, wanted * np.sign(wanted[np.abs(wanted).argmax()]), atol=1e-9)
    low, high = np.percentile((x - mean) @ axes.T, [2, 98], axis=0)  # so that outliers don't take the contrast
    wanted = np.clip(((3 * x - mean) @ axes.T - low) / (high - low), 0, 1)  # many are beyond both ends
    np.testing.assert_allclose(component_places(x, 3 * x), wanted)


def test_features_that_are_all_alike_are_one_middling_colour():
    colours = colours_of(component_places(np.full((50, 4), 7.0), np.full((6, 4), 7.0)))
    assert (colours == colours_of(np.full(3, 0.5))).all() and 60 < colours[0, 0] < 190


def test_features_of_one_dimension_have_a_lightness_alone(rng):
    x = rng.standard_normal((50, 1))
    np.testing.assert_array_equal(principal_components(x)[1], [[1], [0], [0]])
    lightest = colours_of(component_places(x, x))[x.argmax()].astype(int)
    assert lightest.min() > 200 and np.ptp(lightest) < 30


def test_colours_get_lighter_bluer_and_redder_as_they_should():
    def colour(*place):
        return colours_of(np.array(place)).astype(int)

    greys = np.array([colour(p, 0.5, 0.5) for p in np.linspace(0, 1, 9)])
    assert (np.ptp(greys, axis=1) <= 1).all() and (np.diff(greys[:, 0]) > 10).all()
    # A grey's Oklab lightness is the cube root of its linear light.
    linear = (0.3 + 0.62 * 0.25) ** 3
    assert abs(greys[2, 0] - 255 * (1.055 * linear ** (1 / 2.4) - 0.055)) <= 1
    blue, yellow, green, red = colour(0.5, 0, 0.5), colour(0.5, 1, 0.5), colour(0.5, 0.5, 0), colour(0.5, 0.5, 1)
    assert blue[2] > yellow[2] + 100 and yellow[0] > blue[0] + 30
    assert red[0] > green[0] + 100 and green[1] > red[1] + 30


def test_maps_stand_where_their_patches_stand():
    values = np.arange(2 * 64 * 3).reshape(2, 64, 3)
    maps = patch_maps(values, 32)
    assert maps.shape == (2, 3, 32, 32)
    for patch in (0, 7, 8, 37, 63):
        row, column = divmod(patch, 8)
        part = maps[1, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert (part == values[1, patch][:, None, None]).all()


def test_within_an_image_only_differences_inside_of_it_count(model, images):
    labels = np.arange(40) % 10
    probed = ProbedEncoder(model, tuple("abcdefghij"), images, labels, images, labels, "test", 0, None, threads=1)
    flat = np.full((1, 3, 32, 32), 90, np.uint8)
    over_all, within = patch_colours(probed, np.concatenate([images[:3], flat]))
    assert over_all.shape == within.shape == (4, 3, 32, 32) and over_all.dtype == np.uint8
    patches = extract_patches(model, images, threads=1).astype(float)
    fitted = (patches - patches.mean(axis=1, keepdims=True)).reshape(-1, 16)
    wanted = colours_of(component_places(fitted, patches[1] - patches[1].mean(axis=0)))
    shown = within[1, :, ::4, ::4].reshape(3, 64).T
    assert np.abs(shown.astype(int) - wanted).max() <= 1
    assert within[3].std() < within[:3].std() / 2


# ------------------------------------------------------------------------------------------------------------- patches


def test_patch_features_average_to_the_image_features(model, images):
    patches = extract_patches(model, images, threads=2)
    assert patches.shape == (40, 64, 16)
    np.testing.assert_allclose(patches.mean(axis=1), model.features(images, threads=1), atol=1e-5)


def test_target_patches_are_what_training_would_compare_with(model, images):
    masks = MultiBlockMasker().sample(20, np.random.default_rng(1))
    targets = model.targets(normalise(images[:20], model.mean, model.std), masks).data
    whole = target_patches(model, images[:20], threads=2)
    image = np.repeat(np.arange(20), masks.target_lengths.sum(axis=1))
    np.testing.assert_allclose(whole[image, masks.target_index], targets, atol=2e-5)


def test_the_nearest_row_is_the_one_at_the_smallest_distance(rng):
    bank, queries = rng.standard_normal((300, 7)), 0.3 * rng.standard_normal((150, 7))
    distance = np.linalg.norm(queries[:, None] - bank, axis=-1)
    np.testing.assert_array_equal(closest_rows(bank, queries), distance.argmin(axis=1))


def test_the_block_shown_is_the_one_closest_to_the_middle():
    masks = MultiBlockMasker().sample(30, np.random.default_rng(0))
    central = central_blocks(masks, (8, 8))
    assert central.num_targets == 1
    for blocks, (chosen,), context, kept in zip(masks.targets, central.targets, masks.context, central.context):
        off = [abs((block // 8).mean() - 3.5) + abs((block % 8).mean() - 3.5) for block in blocks]
        np.testing.assert_array_equal(chosen, blocks[int(np.argmin(off))])
        np.testing.assert_array_equal(context, kept)


def test_a_block_is_made_of_the_nearest_patches_and_the_rest_stays(model, images):
    config, shown = model.config, images[:6]
    masks = central_blocks(MultiBlockMasker.of(config).sample(6, np.random.default_rng(2)), (8, 8))
    found = predicted_blocks(model, shown, masks, images, threads=1)
    np.testing.assert_array_equal(found["truth"][0], shown)  # the bank holds the images themselves

    batch = normalise(shown, model.mean, model.std)
    target, prediction = model.targets(batch, masks).data, model.predictions(batch, masks).data
    bank = target_patches(model, images, threads=1)
    position = bank.mean(axis=0)[masks.target_index]
    pixels = patchify(images, 4).reshape(-1, 48)
    for features, (filled, error) in ((prediction, found["prediction"]), (position, found["position"])):
        patches, start = patchify(filled, 4), 0
        for i, (block,) in enumerate(masks.targets):
            rows = slice(start, start + len(block))
            distance = np.linalg.norm(features[rows, None] - bank.reshape(1, -1, 16), axis=-1)
            np.testing.assert_array_equal(patches[i, block], pixels[distance.argmin(axis=1)])
            others = np.setdiff1d(np.arange(64), block)
            np.testing.assert_array_equal(patches[i, others], patchify(shown, 4)[i, others])
            assert error[i] == pytest.approx(np.mean((features[rows] - target[rows]) ** 2), rel=1e-4)
            start += len(block)


def test_one_image_of_each_class_then_another():
    labels = np.array([2, 0, 0, 1, 2, 1, 0])
    np.testing.assert_array_equal(one_of_each_class(labels, 5), [1, 3, 0, 2, 5])
    np.testing.assert_array_equal(one_of_each_class(labels, 99), [1, 3, 0, 2, 5, 4, 6])


# ---------------------------------------------------------------------------------------------- neighbours and classes


def test_pictured_cosines_leave_out_what_all_images_have_in_common(rng):
    bank, queries = rng.normal(size=(2, 50, 6)).astype(np.float32)
    nearest, cosines = centred_neighbours(bank + 100, queries + 100, 3)
    assert nearest_neighbours(bank + 100, queries + 100, 3)[1].min() > 0.99
    same, expected = nearest_neighbours(bank - bank.mean(axis=0), queries - bank.mean(axis=0), 3)
    np.testing.assert_array_equal(nearest, same)
    np.testing.assert_allclose(cosines, expected, atol=1e-4)
    assert cosines[:, 0].max() < 0.99


def test_nearest_neighbours_are_sorted_by_cosine(rng):
    bank, queries = rng.standard_normal((300, 7)), rng.standard_normal((150, 7))
    nearest, cosines = nearest_neighbours(bank, 5 * queries, 4)
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    wanted = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ unit.T
    np.testing.assert_array_equal(nearest, np.argsort(-wanted, axis=1)[:, :4])
    np.testing.assert_allclose(cosines, np.take_along_axis(wanted, nearest, axis=1), atol=1e-6)
    nearest, cosines = nearest_neighbours(bank, bank, 999)
    assert nearest.shape == (300, 300) and (nearest[:, 0] == np.arange(300)).all()
    np.testing.assert_allclose(cosines[:, 0], 1, atol=1e-6)


def test_probabilities_are_those_of_the_fitted_classifier(rng):
    y = rng.integers(0, 3, 400)
    x = (rng.standard_normal((400, 6)) + 1.5 * np.eye(3, 6)[y]) * [1, 100, 0.01, 1, 1, 1] + 50
    x[:, 5] = 4  # constant: it must not count, whatever it is elsewhere
    probe = linear_probe(x[:300], y[:300], x[300:], y[300:], 3)
    other = x[300:].copy()
    other[:, 5] = 1e6
    p = Classifier(probe.weight, probe.bias, ()).probabilities(other)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_array_equal(p.argmax(axis=1), probe.predictions)
    train, test = (standardised(part, *statistics(x[:300])) for part in (x[:300], x[300:]))
    theta, _ = fit(train, y[:300], 3, probe.l2, Curvature(train))
    odds = np.exp(test @ theta[:, :-1].T + theta[:, -1])
    np.testing.assert_allclose(p, odds / odds.sum(axis=1, keepdims=True), rtol=1e-3)
    assert np.trace(probe.confusion) / probe.confusion.sum() == probe.accuracy
