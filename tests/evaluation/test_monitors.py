"""The figures of the training log: what they are measured on."""

import numpy as np
import pytest
from tiny import NETWORK, noise

from minijepa import IJEPA, Config, MultiBlockMasker
from minijepa.data import normalise
from minijepa.evaluation import monitors
from minijepa.evaluation.monitors import Monitors, warning
from minijepa.evaluation.probing import content_r2, feature_std, rank_me


@pytest.fixture
def model(rng):
    """An untrained network whose target encoder is not its context encoder."""
    model = IJEPA(Config(**NETWORK))
    model.target_flat.data += 0.1 * rng.standard_normal(model.target_flat.data.shape)
    return model


def watch(model, images, labels=None, val_images=(), val_labels=()):
    labels = np.zeros(len(images), np.uint8) if labels is None else labels
    return Monitors(model, MultiBlockMasker(), images, labels, val_images, val_labels, threads=1)


def two_classes(rng, count):
    """Dark and bright images, and which they are."""
    labels = rng.integers(0, 2, count).astype(np.uint8)
    return noise(count).train_images // 8 + labels[:, None, None, None] * np.uint8(200), labels


def test_collapse_is_measured_on_the_first_images_with_the_same_masks_every_time(model, monkeypatch):
    monkeypatch.setattr(monitors, "WATCHED", 70)  # more than fit into one chunk
    images = noise(80).train_images
    watching = watch(model, images)
    x = normalise(images[:70], model.mean, model.std)
    features = model.encode(x).data.mean(axis=1)
    predictions, targets = model.predictions(x, watching.masks).data, model.targets(x, watching.masks).data
    assert watching.collapse() == pytest.approx(
        {
            "feature_std": feature_std(features),
            "rank_me": rank_me(features),
            "content_r2": content_r2(predictions, targets, watching.masks.target_index, 64),
        },
        rel=1e-4,
    )
    assert watching.collapse() == watch(model, images).collapse()


def test_knn_reads_the_labels_of_images_that_are_not_in_its_bank(model, rng):
    images, labels = two_classes(rng, 50)
    watching = watch(model, images, labels)
    assert (len(watching.bank), len(watching.queries)) == (40, 10)
    assert not {x.tobytes() for x in watching.bank} & {x.tobytes() for x in watching.queries}
    assert watching.knn() == 1.0


def test_knn_guesses_the_held_back_images_if_there_are_any(model, rng):
    (images, labels), (val_images, val_labels) = two_classes(rng, 50), two_classes(rng, 10)
    watching = watch(model, images, labels, val_images, val_labels)
    np.testing.assert_array_equal(watching.bank, images)
    np.testing.assert_array_equal(watching.queries, val_images)
    assert watching.knn() == 1.0


def test_knn_of_one_image_is_none_and_of_two_a_figure(model, rng):
    images, labels = two_classes(rng, 2)
    assert watch(model, images[:1], labels[:1]).knn() is None
    assert watch(model, images, labels).knn() == (labels[0] == labels[1])


def test_a_collapse_warning_says_what_to_try():
    config = Config()
    assert warning(0.4, 16.0, 0.3, 0.5, config) is None
    for std, rank, why in ((0.01, 16.0, "look alike"), (0.4, 1.1, "one or two directions")):
        text = warning(std, rank, 0.3, 0.0, config)
        assert text.startswith("warning: the features are collapsing") and why in text
        assert "target_norm" in text and "a lower --lr" in text
    assert warning(0.4, 16.0, 0.0, 0.1, config) is None  # early on, knowing positions alone is no fault
    text = warning(0.4, 16.0, -0.01, 0.3, config)
    assert "not what is in it (deviation 0.400, RankMe 16.0, content R² -0.010)" in text and "init_std" in text


@pytest.mark.parametrize("found", [(0.01, 16.0, 0.3), (0.4, 1.1, 0.3), (0.4, 16.0, 0.0)])
def test_what_a_run_has_already_is_not_advised(found):
    text = warning(*found, 1.0, Config.preset("laptop"))
    assert not any(name in text for name in ("target_norm", "patch_embed_gain", "init_std")) and " or " in text
