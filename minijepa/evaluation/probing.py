"""How good are features? A linear probe, and monitors of collapse.

Everything here works on arrays of features, (N, D), independent of the network that made them. The linear probe is the
standard measure of self-supervised learning: a linear classifier on frozen features. Its number can be trusted only if
the classifier is really fitted, so it is fitted to convergence, by a deterministic solver without a learning rate, and
its only hyper-parameter is chosen on held-out training images. The test set is used once.
"""

from dataclasses import dataclass

import numpy as np

from minijepa.backend import rng
from minijepa.cli import counted
from minijepa.errors import DataError
from minijepa.evaluation.checks import checked, checked_features, checked_labels, map_rows
from minijepa.evaluation.logistic import Curvature, FitInfo, fit

L2_GRID = tuple(10.0**power for power in range(-8, 3))
RANK_ME_EPS = 1e-7  # of Garrido et al. 2023


@dataclass(frozen=True)
class ProbeResult:
    """The result of :func:`linear_probe`.

    ``sweep`` lists (l2, accuracy on the held-out part of the training set); ``final`` is about the final fit;
    ``confusion[t, p]`` counts the test rows of class t classified as p.
    ``weight`` (C, D) and ``bias`` (C,) are the classifier's, for features that are not standardised.
    """

    accuracy: float
    l2: float
    sweep: list[tuple[float, float]]
    final: FitInfo
    confusion: np.ndarray
    predictions: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @property
    def at_edge(self):
        """If a better penalty may lie beyond the grid: the end that was chosen, "weakest" or "strongest"; else None."""
        grid = sorted(l2 for l2, _ in self.sweep)
        return {grid[0]: "weakest", grid[-1]: "strongest"}.get(self.l2)


# ------------------------------------------------------------------------------------------------- the linear probe


def linear_probe(train_x, train_y, test_x, test_y, num_classes, seed=0, done=lambda: None):
    """Accuracy of a linear classifier on features: train (N, D) and (N,), test (M, D) and (M,) -> ProbeResult.

    Features are standardised with the training statistics, the penalty is chosen on a tenth of the training set
    (:func:`choose_l2`), the classifier is fitted again to all of it, and the test set is classified once. ``done`` is
    called after each of the ``len(L2_GRID) + 1`` fits.
    Raises DataError for features or labels that don't fit together.
    """
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y, num_classes)
    mean, std = statistics(train_x)
    train_x, test_x = (standardised(x, mean, std) for x in (train_x, test_x))
    curvature = Curvature(train_x)
    l2, sweep, theta = choose_l2(train_x, train_y, num_classes, curvature, seed=seed, done=done)
    theta, info = fit(train_x, train_y, num_classes, l2, curvature, theta)
    done()
    weight, bias = theta[:, :-1], theta[:, -1]
    predictions = _classify(test_x, weight, bias)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (test_y, predictions), 1)
    return ProbeResult(
        accuracy=float(np.mean(predictions == test_y)),
        l2=l2,
        sweep=sweep,
        final=info,
        confusion=confusion,
        predictions=predictions,
        weight=weight / std,
        bias=bias - weight @ (mean / std),
    )


def standardised(x, mean, std):
    """(x − mean) / std per feature, float32."""
    return np.concatenate(list(map_rows(lambda x: ((x - mean) / std).astype(np.float32), x)))


def statistics(x):
    """Mean and standard deviation of each feature, float64 (D,); infinity for the deviation of a constant one.

    A constant feature (its std is below float32's rounding of its mean) carries no information. Divided by infinity it
    is 0; divided by a tiny std, its rounding would become a feature.
    """
    mean = sum(map_rows(lambda x: x.sum(axis=0, dtype=np.float64), x)) / len(x)
    variance = sum(map_rows(lambda x: np.square(x - mean).sum(axis=0), x)) / len(x)
    std = np.sqrt(variance)
    std[std <= 1e-6 * np.abs(mean)] = np.inf
    return mean, std


def choose_l2(x, y, num_classes, curvature, grid=L2_GRID, seed=0, done=lambda: None):
    """The penalty whose classifier is best on a held-out part of the training set: x (N, D) standardised, y (N,).

    A tenth of each class is held out, drawn by ``seed`` alone. The whole grid is tried, from strong to weak, each fit
    starting from the previous one: if classes differ only along directions of little variance, all but the weakest
    penalties are at chance. Returns the best l2 (of equals, the strongest), the table of (l2, held-out accuracy), and
    the best one's classifier, (C, D+1). The ``curvature`` of all rows serves for the fitted part too: it affects only
    the speed, not the solution.
    """
    train, val = stratified_split(y, 0.1, seed)
    train_x, train_y, val_x, val_y = x[train], y[train], x[val], y[val]
    rows, theta = [], None
    for l2 in sorted(grid, reverse=True):
        theta, _ = fit(train_x, train_y, num_classes, l2, curvature, theta, tolerance=None)
        predictions = _classify(val_x, theta[:, :-1], theta[:, -1])
        rows.append((float(l2), float(np.mean(predictions == val_y)), theta))
        done()
    best, _, theta = max(rows, key=lambda row: row[1])  # max keeps the first of equals
    return best, [row[:2] for row in rows], theta


def stratified_split(y, val_fraction, seed):
    """Sorted row numbers (train, val) that hold out ``val_fraction`` of each class, at least one of two or more."""
    generator = rng(seed, "probe split")
    held_out = np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = generator.permutation(np.flatnonzero(y == label))
        count = max(round(val_fraction * len(rows)), 1) if len(rows) > 1 else 0
        held_out[rows[:count]] = True
    if not held_out.any() or held_out.all():
        rows = counted(len(y), "labelled row")
        raise DataError(f"{rows} can't be split to choose l2: give at least two rows per class")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _classify(x, weight, bias):
    """The most likely class of each row, (N,)."""
    weight, bias = weight.astype(x.dtype), bias.astype(x.dtype)
    return np.concatenate(list(map_rows(lambda x: np.argmax(x @ weight.T + bias, axis=1), x)))


# ------------------------------------------------------------------------------------------------ monitors of collapse


def feature_std(x):
    """Standard deviation over the samples, averaged over the features: x (N, D) -> float; 0 is complete collapse."""
    x = checked_features(x, "monitored")
    return float(np.mean(np.std(x, axis=0, dtype=np.float64)))


def rank_me(x):
    """The effective number of dimensions that features use: x (N, D) -> float, from 1 to min(N, D); 0 for x = 0.

        exp(−Σₖ pₖ log pₖ),   pₖ = σₖ / Σⱼ σⱼ + 1e-7,   σ the singular values of x (not centred)

    Source: Garrido et al., "RankMe: assessing the downstream performance of pretrained self-supervised representations
    by their rank", ICML 2023.
    """
    x = checked_features(x, "monitored")
    singular = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    if singular[0] == 0:
        return 0.0
    p = singular / singular.sum() + RANK_ME_EPS
    return float(np.exp(-np.sum(p * np.log(p))))


def content_r2(prediction, target, position, num_positions):
    """What predictions know beyond the position: prediction and target (T, D), position (T,) -> float ≤ 1.

        1 − MSE(prediction, target) / MSE(mean of the targets at the same position, target)

    1 is perfect, 0 no better than knowing where the patch is, negative is worse. A target whose position occurs once is
    its own mean and would flatter the baseline, so its row is left out of both errors. NaN if no position occurs twice
    or if the targets at each position are all equal: then there is no content to predict.
    """
    prediction, target = checked_features(prediction, "predicted"), checked_features(target, "target")
    position = checked_labels(position, len(target), num_positions, "positions")
    if prediction.shape != target.shape:
        raise DataError(f"predictions are {prediction.shape} but targets {target.shape}: their shapes must be equal")
    order, ends = np.argsort(position, kind="stable"), np.cumsum(np.bincount(position))
    error = baseline = squares = 0.0
    for rows in np.split(order, ends[:-1]):  # those of each position: few enough for the cache
        if len(rows) > 1:
            y = target[rows].astype(np.float64)
            error += np.sum((prediction[rows] - y) ** 2)
            baseline += np.sum((y.mean(axis=0) - y) ** 2)
            squares += np.sum(y**2)
    if baseline <= 1e-12 * squares:  # equal except for float32's rounding
        return float("nan")
    return float(1 - error / baseline)
