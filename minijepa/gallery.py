"""The pictures that need features: neighbours, principal components, predictions, and those of one's own images."""

import numpy as np

from minijepa import pictures
from minijepa.backend import rng
from minijepa.config import masker_settings
from minijepa.data import MultiBlockMasker
from minijepa.evaluation import Subject
from minijepa.features import extract_features, extract_patches
from minijepa.inspection import central_blocks, patch_maps, predicted_blocks, principal_components
from minijepa.probing import nearest_neighbours
from minijepa.record import draw_curves, draw_masks

QUERIES, NEIGHBOURS = 10, 8
FITTED = 500  # images to whose patches principal components are fitted
BANK = 2000  # images whose patches a prediction can be made of
PREDICTED = 8


def gallery_of_trainer(run):
    """A run that has just ended: the images that its kNN monitor uses. The test set is left alone."""
    t, watch = run.trainer, run.trainer.monitors
    has_queries = len(watch.queries) > 0
    return Subject(
        t.model, t.dataset.classes, watch.bank[:BANK], watch.bank_labels[:BANK],
        watch.queries if has_queries else watch.bank, watch.query_labels if has_queries else watch.bank_labels,
        kind="val" if t.config.val_size else "training", step=t.progress.step, file=run.checkpoint,
        threads=watch.threads,
    )  # fmt: skip


def draw_features(subject):
    """neighbours.png, pca.png and predictions.png, into the run's folder; returns their paths."""
    drawn = {"neighbours": draw_neighbours, "pca": draw_components, "predictions": draw_predictions}
    paths = {name: subject.folder / f"{name}{subject.suffix}.png" for name in drawn}
    with np.errstate(all="ignore"):  # weights that are hardly finite were told of before
        for name, draw in drawn.items():
            draw(subject, paths[name])
    return list(paths.values())


def draw_all(subject, train_images, rows):
    """All pictures of a run but for the confusions, which the evaluation draws; returns their paths.

    ``train_images``: the run's own; ``rows``: of its metrics, None if there are none.
    """
    draw_masks(subject.folder / "masks.png", subject.model.config, train_images)
    paths = [subject.folder / "masks.png"]
    if rows is not None:
        draw_curves(subject.folder, rows)
        paths.append(subject.folder / "curves.png")
    return paths + draw_features(subject)


def draw_neighbours(subject, path):
    chosen = one_of_each_class(subject.test_y, QUERIES)
    features = extract_features(subject.model, subject.test[chosen], subject.encoder, subject.threads)
    nearest, similarity = nearest_neighbours(subject.features, features, NEIGHBOURS)
    pictures.neighbours_picture(
        subject.test[chosen], subject.test_y[chosen], subject.train, subject.train_y, nearest, similarity,
        subject.classes, path,
        f"Queries are {subject.asked} images, the first of each class; neighbours come from {len(subject.train):,} "
        f"training images: the highest cosine similarity (the small numbers) of the {subject.encoder} encoder's "
        f"features, averaged over patches. By chance {100 / len(subject.classes):.0f}% would be of the query's class.",
        subject.note,
    )  # fmt: skip


def draw_components(subject, path):
    chosen = one_of_each_class(subject.test_y, 12)
    over_all, within = patch_colours(subject, subject.test[chosen])
    pictures.pca_picture(
        subject.test[chosen], {"over all images": over_all, "within image": within}, path,
        f"Patches of {subject.asked} images, coloured by what the {subject.encoder} encoder answers there: the first "
        "component is lightness, the second runs from blue to yellow, the third from green to red. Within image: the "
        "mean over the image is taken off first, so that its parts are told apart, and not images.",
        subject.note,
    )  # fmt: skip


def patch_colours(subject, images):
    """Patch features as colours, as they are and less the mean of their image: two uint8 arrays (B, 3, S, S).

    The components are fitted to training images.
    """
    fitted, shown = (extract_patches(subject.model, x, subject.encoder, subject.threads)
                     for x in (subject.train[:FITTED], images))  # fmt: skip
    maps = []
    for _ in range(2):
        components = principal_components(fitted.reshape(-1, fitted.shape[-1]))
        maps.append(patch_maps(components.colours(shown), images.shape[-1]))
        fitted, shown = (x - x.mean(axis=1, keepdims=True) for x in (fitted, shown))
    return maps


def draw_predictions(subject, path):
    config = subject.model.config
    images = subject.test[one_of_each_class(subject.test_y, PREDICTED)]
    masks = MultiBlockMasker(**masker_settings(config)).sample(len(images), rng(0, "pictured masks"))
    masks = central_blocks(masks, config.grid)
    found = predicted_blocks(subject.model, images, masks, subject.train[:BANK], subject.threads)
    fillings = {
        "hidden block": (images, None),
        "nearest to\ntrue features": (found.truth, None),
        "nearest to\nprediction": (found.prediction, found.prediction_error),
        "nearest to mean\nof position": (found.position, found.position_error),
    }
    pictures.predictions_picture(
        images, masks, fillings, config.patch_size, path,
        f"A hidden block of {subject.asked} images, made of patches of {min(BANK, len(subject.train)):,} training "
        "images: those whose target features are nearest to the true ones (the best that this can show), to the "
        "predicted ones, and to the mean of the position, which knows nothing of the context. Errors: mean squares a "
        "dimension.",
        subject.note,
    )  # fmt: skip


def draw_own(subject, names, images, more, path):
    features = extract_features(subject.model, images, subject.encoder, subject.threads)
    nearest, similarity = nearest_neighbours(subject.features, features, 5)
    cut = f" The first {len(images)} of {len(images) + more} pictures, by name." if more else ""
    pictures.own_images_picture(
        names, images, subject.probe.probabilities(features), patch_colours(subject, images)[1],
        subject.train, subject.train_y, nearest, similarity, subject.classes, path,
        f"As the network sees them, cut to a square and shrunk to {images.shape[-1]} pixels; the features of their "
        "patches as colours, less their mean; the classes of the linear probe, which knows no others and "
        "must choose one; the nearest training images by cosine similarity, framed in blue where they are of that "
        f"class.{cut}",
        subject.note,
    )  # fmt: skip


def one_of_each_class(labels, count):
    """Indices of ``count`` images: the first of each class, then the second of each, and so on."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order])
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - starts
    return np.lexsort((labels, rank))[:count]
