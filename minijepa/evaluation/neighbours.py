"""Nearest neighbours among rows of features, by cosine similarity, and how well they predict classes."""

import numpy as np

from minijepa.errors import ConfigError
from minijepa.evaluation.checks import checked, map_rows

KNN_TEMPERATURE = 0.07  # of Wu et al. 2018 and of DINO


def knn_accuracy(train_x, train_y, test_x, test_y, num_classes, k=20):
    """Accuracy of a weighted vote of the k nearest training rows by cosine similarity; nothing is fitted.

    Features are L2-normalised, but not standardised. Each neighbour votes for its class with weight
    exp(similarity / 0.07), the form of Wu et al., "Unsupervised feature learning via non-parametric instance
    discrimination" (2018), and of DINO (Caron et al. 2021). ``k`` beyond the number of training rows means all of them.
    """
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y, num_classes)
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

    def block(x):
        similarity = x @ bank.T
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
        similarity = np.take_along_axis(similarity, nearest, axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")
        return np.take_along_axis(nearest, order, axis=1), np.take_along_axis(similarity, order, axis=1)

    return tuple(map(np.concatenate, zip(*map_rows(block, queries, block_rows=128))))


def _unit_rows(x):
    """Rows divided by their length, whatever their scale; a row of zeros stays zero."""
    largest = np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True))  # so that no square overflows
    x = x / np.where(largest > 0, largest, 1)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)
    return x
