"""The pictures that need features: neighbours, principal components, predictions, and the user's own images."""

import numpy as np

from minijepa import pictures
from minijepa.backend import rng
from minijepa.data import MultiBlockMasker, one_of_each_class
from minijepa.evaluation.evaluate import ProbedEncoder
from minijepa.evaluation.neighbours import nearest_neighbours
from minijepa.evaluation.patches import (
    central_blocks,
    colours_of,
    component_places,
    extract_patches,
    patch_maps,
    predicted_blocks,
)
from minijepa.training import checkpoint
from minijepa.training.metrics import draw_curves, draw_masks

QUERIES, NEIGHBOURS = 10, 8
FITTED = 500  # images whose patches principal components are fitted to
BANK = 2000  # images whose patches stand in for a prediction
PREDICTED = 8
OWN_BANK = 5000  # training images searched for neighbours of the user's pictures: a second or two


def gallery_of_trainer(run):
    """Of a run that has just ended, with the images of its kNN monitor. The test set is not used."""
    t, watch = run.trainer, run.trainer.monitors
    queries = (watch.queries, watch.query_labels) if len(watch.queries) else (watch.bank, watch.bank_labels)
    return ProbedEncoder(
        t.model, t.dataset.classes, watch.bank[:BANK], watch.bank_labels[:BANK], *queries,
        kind="val" if t.config.val_size else "training", step=t.progress.step, file=run.place / checkpoint.FILE,
        threads=watch.threads,
    )  # fmt: skip


def draw_features(probed):
    """neighbours.png, pca.png and, of a model with a predictor, predictions.png; returns their paths."""
    drawn = {"neighbours": draw_neighbours, "pca": draw_components}
    if hasattr(probed.model, "predictor"):
        drawn["predictions"] = draw_predictions
    paths = {name: probed.folder / f"{name}{probed.suffix}.png" for name in drawn}
    with np.errstate(all="ignore"):  # extreme weights were reported before
        for name, draw in drawn.items():
            draw(probed, paths[name])
    return list(paths.values())


def draw_all(probed, train_images, rows):
    """All pictures of a run except confusion.png, which the evaluation draws; returns their paths.

    ``train_images``: the run's own; ``rows``: of its metrics, None if there are none.
    """
    draw_masks(probed.folder / "masks.png", probed.model.config, train_images)
    paths = [probed.folder / "masks.png"]
    if rows is not None:
        draw_curves(probed.folder, rows)
        paths.append(probed.folder / "curves.png")
    return paths + draw_features(probed)


def draw_neighbours(probed, path):
    chosen = one_of_each_class(probed.test_y, QUERIES)
    features = probed.model.features(probed.test[chosen], probed.encoder, probed.threads)
    nearest, similarity = centred_neighbours(probed.features, features, NEIGHBOURS)
    pictures.neighbours_picture(
        probed.test[chosen], probed.test_y[chosen], probed.train, probed.train_y, nearest, similarity,
        probed.classes, path,
        f"Queries are {probed.asked} images, the first of each class; neighbours come from {len(probed.train):,} "
        f"training images: the highest cosine similarity (the small numbers) of the {probed.encoder} encoder's "
        f"features, averaged over patches, less their mean: 1 is the same direction from the mean image, 0 a right "
        f"angle. By chance {100 / len(probed.classes):.0f}% would be of the query's class.",
        probed.note,
    )  # fmt: skip


def centred_neighbours(bank, queries, k):
    """``nearest_neighbours`` of features minus the bank's mean.

    Most of a feature vector is common to all images: with it, every cosine is 0.9 or more.
    """
    mean = bank.mean(axis=0, dtype=np.float64).astype(bank.dtype)
    return nearest_neighbours(bank - mean, queries - mean, k)


def draw_components(probed, path):
    chosen = one_of_each_class(probed.test_y, 12)
    over_all, within = patch_colours(probed, probed.test[chosen])
    pictures.pca_picture(
        probed.test[chosen], {"over all images": over_all, "within image": within}, path,
        f"Patches of {probed.asked} images, coloured by what the {probed.encoder} encoder answers there: the first "
        "component is lightness, the second runs from blue to yellow, the third from green to red. Within image: the "
        "mean over the image is taken off first, so that its parts are told apart, and not images.",
        probed.note,
    )  # fmt: skip


def patch_colours(probed, images):
    """Patch features as colours, unchanged and minus their image's mean: two uint8 arrays (B, 3, S, S).

    The components are fitted to training images; without a data set, to the pictures themselves.
    """
    both = [extract_patches(probed.model, x, probed.encoder, probed.threads) for x in (probed.train[:FITTED], images)]
    within = [x - x.mean(axis=1, keepdims=True) for x in both]
    return [_coloured(fitted, shown, images.shape[-1]) for fitted, shown in (both, within)]


def _coloured(fitted, shown, size):
    """Features (B, N, D) as colours, uint8 (B, 3, size, size), by the principal components of ``fitted``."""
    return patch_maps(colours_of(component_places(fitted.reshape(-1, fitted.shape[-1]), shown)), size)


def draw_predictions(probed, path):
    config = probed.model.config
    images = probed.test[one_of_each_class(probed.test_y, PREDICTED)]
    masks = MultiBlockMasker.of(config).sample(len(images), rng(0, "pictured masks"))
    masks = central_blocks(masks, config.grid)
    found = predicted_blocks(probed.model, images, masks, probed.train[:BANK], probed.threads)
    fillings = {
        "hidden block": (images, None),
        "nearest to\ntrue features": (found["truth"][0], None),
        "nearest to\nprediction": found["prediction"],
        "nearest to mean\nof position": found["position"],
    }
    pictures.predictions_picture(
        images, masks, fillings, config.patch_size, path,
        f"A hidden block of {probed.asked} images, made of patches of {min(BANK, len(probed.train)):,} training "
        "images: those whose target features are nearest to the true ones (the best that this can show), to the "
        "predicted ones, and to the mean of the position, which knows nothing of the context. Errors: mean squares a "
        "dimension.",
        probed.note,
    )  # fmt: skip


def draw_own(probed, own):
    """own_images.png; returns its path. ``own``: OwnPictures of ``read_folder``.

    Without a data set (``train_y`` is None) there are no neighbours.
    """
    path = probed.folder / f"own_images{probed.suffix}.png"
    features = probed.model.features(own.images, probed.encoder, probed.threads)
    classifier = "linear classifier that came with the encoder" if probed.model.classifier else "linear probe"
    neighbours, nearest = None, ""
    if probed.train_y is not None:
        bank = probed.train[:OWN_BANK]
        known = probed.model.features(bank, probed.encoder, probed.threads)
        neighbours = bank, probed.train_y[:OWN_BANK], *centred_neighbours(known, features, 5)
        nearest = f"; the nearest of {len(bank):,} training images, framed in blue where of that class"
    cut = f" The first {len(own.images)} of {len(own.images) + own.more} pictures, by name." if own.more else ""
    pictures.own_images_picture(
        own.names, own.images, probed.classifier.probabilities(features), patch_colours(probed, own.images)[1],
        probed.classes, neighbours, path,
        f"As the network sees them, cut to a square and shrunk to {own.images.shape[-1]} pixels; the features of their "
        f"patches as colours, less their mean; the classes of the {classifier}, which knows no others and must choose "
        f"one{nearest}.{cut}",
        probed.note,
    )  # fmt: skip
    return path
