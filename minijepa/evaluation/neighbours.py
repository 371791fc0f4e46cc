"""Nearest neighbours among rows of features, by cosine similarity, and how well they predict classes."""

import numpy as np

from minijepa.backend import rng
from minijepa.errors import ConfigError
from minijepa.evaluation.checks import check_same_width, checked, map_rows

KNN_TEMPERATURE = 0.07  # of Wu et al. 2018 and of DINO
KEPT = 384  # dimensions in which the nearest of wide rows are searched
ROUNDING = 1e-5  # of a cosine


def knn_accuracy(train_x, train_y, test_x, test_y, num_classes, k=20):
    """Accuracy of a weighted vote of the k nearest training rows by cosine similarity; nothing is fitted.

    Features are L2-normalised, but not standardised. Each neighbour votes for its class with weight
    exp(similarity / 0.07), the form of Wu et al., "Unsupervised feature learning via non-parametric instance
    discrimination" (2018), and of DINO (Caron et al. 2021). ``k`` beyond the number of training rows means all of them.
    """
    train_x, train_y = checked(train_x, train_y, num_classes, "training")
    test_x, test_y = checked(test_x, test_y, num_classes, "test")
    check_same_width(train_x, test_x)
    if k < 1:
        raise ConfigError(f"k = {k}: at least one neighbour must vote")
    nearest, similarity = nearest_neighbours(train_x, test_x, k)
    votes = np.zeros((len(test_x), num_classes))
    rows = np.arange(len(test_x))[:, None]
    np.add.at(votes, (rows, train_y[nearest]), np.exp(similarity / KNN_TEMPERATURE))
    return np.count_nonzero(np.argmax(votes, axis=1) == test_y) / len(test_x)


def nearest_neighbours(bank, queries, k):
    """The k rows of ``bank`` most similar to each query by cosine: (N, D), (Q, D) -> indices (Q, k), cosines (Q, k).

    The most similar one comes first. ``k`` beyond the number of rows means all of them.
    """
    k = min(k, len(bank))
    bank, queries = _unit_rows(bank), _unit_rows(queries)
    if bank.shape[1] >= 2 * KEPT and len(bank) >= 2 * KEPT:
        return _nearest_of_wide_rows(bank, queries, k)

    def block(x):
        similarity = x @ bank.T
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
        return _in_order(nearest, np.take_along_axis(similarity, nearest, axis=1))

    return _joined(map_rows(block, queries, block_rows=128))


def _nearest_of_wide_rows(bank, queries, k):
    """The same for unit rows of many features, such as raw pixels, without most of the products.

    Let P be a projection onto a few dimensions, Px the part of x there and x − Px the rest. Then

        x·b = Px·Pb + (x − Px)·(b − Pb)  ≤  Px·Pb + |x − Px| |b − Pb|,

    which is one product of short rows, [Px, |x − Px|]·[Pb, |b − Pb|]. The k rows with the highest bounds are compared
    exactly; a row whose bound is below all of these cosines can't be among the nearest. The dimensions are roughly
    those in which the bank is largest: three steps of a power iteration on some of its rows.
    """
    basis, some = rng(0, "dimensions").standard_normal((bank.shape[1], KEPT)), bank[:: max(1, len(bank) // 2048)]
    for _ in range(3):
        basis = np.linalg.qr(some.T @ (some @ basis.astype(bank.dtype)))[0]

    def shortened(x):
        part = x @ basis
        rest = np.einsum("nd,nd->n", x, x) - np.einsum("nd,nd->n", part, part)
        return np.column_stack([part, np.sqrt(np.maximum(rest, 0))])

    short_bank = np.concatenate(list(map_rows(shortened, bank)))

    def block(x):
        bound = shortened(x) @ short_bank.T
        highest = np.argpartition(bound, -k, axis=1)[:, -k:]
        least = np.einsum("qkd,qd->qk", bank[highest], x).min(axis=1)
        found = [np.flatnonzero(row >= least - ROUNDING) for row, least in zip(bound, least)]
        if sum(map(len, found)) > bound.size // 16:  # few dimensions say little about these rows
            found = [np.arange(len(bank))] * len(x)
        rows = [_in_order(near[None], (bank[near] @ x)[None]) for near, x in zip(found, x)]
        return _joined((near[:, :k], similarity[:, :k]) for near, similarity in rows)

    return _joined(map_rows(block, queries, block_rows=128))


def _in_order(nearest, similarity):
    """Both (Q, k), sorted by similarity, the highest first."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    return np.take_along_axis(nearest, order, axis=1), np.take_along_axis(similarity, order, axis=1)


def _joined(pairs):
    return tuple(map(np.concatenate, zip(*pairs)))


def _unit_rows(x):
    """Rows divided by their length, whatever their scale; a row of zeros stays zero."""
    largest = np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True))  # so that no square overflows
    x = x / np.where(largest > 0, largest, 1)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)
    return x
