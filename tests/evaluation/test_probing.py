"""The linear probe, kNN and the monitors of collapse, against independent and slower ways to get the same numbers."""

from dataclasses import replace

import numpy as np
import pytest

from minijepa.errors import ConfigError, DataError
from minijepa.evaluation.logistic import Curvature, fit, loss_and_gradient, minimise
from minijepa.evaluation.neighbours import knn_accuracy, nearest_neighbours
from minijepa.evaluation.patches import closest_rows
from minijepa.evaluation.probing import (
    choose_l2,
    content_r2,
    feature_std,
    linear_probe,
    rank_me,
    standardised,
    statistics,
    stratified_split,
)


def make_classes(rows, features, classes, seed=0, spread=1.0):
    """Overlapping Gaussian classes whose features are correlated and of different scales."""
    g = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    centres = np.random.default_rng(99).normal(size=(classes, features))
    mix = np.random.default_rng(98).normal(size=(features, features))
    x = (centres[y] * spread + g.normal(size=(rows, features))) @ mix
    return x.astype(np.float32), y


def split_classes(train, test, features, classes, spread=0.3):
    """Training rows and labels, test rows and labels."""
    sizes = enumerate((train, test))
    return [part for seed, rows in sizes for part in make_classes(rows, features, classes, seed, spread)]


def newton(x, y, classes, l2, steps=30):
    """Plain Newton with the whole (C(D+1))² Hessian: slow, and shares no line with the solver under test.

    All biases may move together without effect, so the Hessian is singular: least squares takes the shortest step.
    """
    x = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    n, d = x.shape
    penalty = np.diag([l2] * (d - 1) + [0.0])
    theta = np.zeros((classes, d))
    for _ in range(steps):
        z = x @ theta.T
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        gradient = (p - np.eye(classes)[y]).T @ x / n + theta @ penalty
        hessian = np.kron(np.eye(classes), penalty)
        for i in range(n):
            hessian += np.kron(np.diag(p[i]) - np.outer(p[i], p[i]), np.outer(x[i], x[i])) / n
        theta -= np.linalg.lstsq(hessian, gradient.ravel(), rcond=1e-12)[0].reshape(classes, d)
    return theta


# ---------------------------------------------------------------------------------------------- logistic regression


def logistic_regression(x, y, classes, l2, **options):
    """weight (C, D), bias (C,), FitInfo"""
    theta, info = fit(x, y, classes, l2, Curvature(x), **options)
    return theta[:, :-1], theta[:, -1], info


def test_loss_survives_logits_far_outside_the_range_of_exp():
    x, y = np.array([[1e4], [-1e4]]), np.array([1, 0])
    loss, gradient = loss_and_gradient(np.array([[1.0, 0.0], [-1.0, 0.0]]), x, y, 1e-3)
    assert loss == pytest.approx(2e4, rel=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_solution_is_that_of_newton(dtype, l2):
    x, y = make_classes(120, 4, 3, spread=0.5)
    x = (x + 2).astype(dtype)  # not centred: the bias has to work
    weight, bias, info = logistic_regression(x, y, 3, l2, tolerance=1e-9)
    assert info.converged
    expected = newton(x, y, 3, l2)
    np.testing.assert_allclose(weight, expected[:, :-1], atol=1e-6)
    np.testing.assert_allclose(bias - bias.mean(), expected[:, -1] - expected[:, -1].mean(), atol=1e-6)


def test_reported_gradient_norm_is_that_of_the_solution():
    x, y = make_classes(600, 6, 4)
    weight, bias, info = logistic_regression(x, y, 4, 1e-3)
    z = x.astype(np.float64) @ weight.T + bias
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    g = (p - np.eye(4)[y]) / len(x)
    norm = np.sqrt(np.sum((g.T @ x + 1e-3 * weight) ** 2) + np.sum(g.sum(axis=0) ** 2))
    assert info.gradient_norm == pytest.approx(norm, rel=1e-6)
    assert info.converged and norm < 1e-5


def test_correlated_features_take_tens_of_steps_and_a_fraction_of_plain_lbfgs():
    x, y = make_classes(1000, 20, 3, spread=0.3)
    x = x @ np.random.default_rng(0).normal(size=(20, 60))  # rank 20 in 60 dimensions
    x = standardised(x, *statistics(x))
    _, _, info = logistic_regression(x, y, 3, 1e-4)
    start = np.zeros((3, 61))
    _, _, plain, _ = minimise(lambda theta: loss_and_gradient(theta, x, y, 1e-4), start, lambda g: g, 1e-5, 1000)
    assert info.converged and info.iterations < 50
    assert plain > 3 * info.iterations


def test_a_fit_converges_along_directions_that_hardly_vary_too():
    g = np.random.default_rng(0)
    y = np.arange(2000) % 2
    common, telling = np.repeat(g.normal(size=1000), 2), g.normal(size=2000) + y
    x = np.column_stack([common - 1e-5 * telling, common + 1e-5 * telling])
    assert np.linalg.norm(loss_and_gradient(np.zeros((2, 3)), x, y, 1e-12)[1]) < 1e-5  # before the first step
    weight, bias, info = logistic_regression(x, y, 2, 1e-12)
    assert info.converged and info.gradient_norm < 1e-5
    expected, best, _ = logistic_regression(telling[:, None], y, 2, 1e-12)
    right = np.argmax(telling[:, None] @ expected.T + best, axis=1)
    assert np.mean(np.argmax(x @ weight.T + bias, axis=1) == right) > 0.99


@pytest.mark.parametrize(("options", "norm"), [({"max_iterations": 2}, (1e-5, 1)), ({"tolerance": 1e-30}, (0, 1e-12))])
def test_failure_to_converge_is_reported(options, norm):
    x, y = make_classes(200, 5, 3)
    with pytest.warns(RuntimeWarning, match=r"did not converge: gradient norm .* after \d+ iterations"):
        _, _, info = logistic_regression(x, y, 3, 1e-2, **options)
    assert not info.converged and norm[0] < info.gradient_norm < norm[1]
    assert info.iterations == options.get("max_iterations", info.iterations)


@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan")])
def test_penalty_must_be_positive(l2):
    x, y = make_classes(20, 2, 2)
    with pytest.raises(ConfigError, match="must be positive"):
        logistic_regression(x, y, 2, l2)


# ---------------------------------------------------------------------------------------------- the probe around it


def test_standardised_features_have_mean_0_and_deviation_1():
    train, _ = make_classes(500, 3, 2)
    train, other = train * 5 + 7, train[:9] - 3
    a, b = (standardised(x, *statistics(train)) for x in (train, other))
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_allclose(a.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(a.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(b, (other - train.mean(axis=0)) / train.std(axis=0), rtol=1e-3, atol=1e-4)


def test_constant_features_are_silenced_and_tiny_ones_kept():
    g = np.random.default_rng(0)
    varying = g.normal(size=100).astype(np.float32)
    train = np.column_stack([np.full(100, 0.1, np.float32), varying * np.float32(1e-20), np.zeros(100, np.float32)])
    a, b = (standardised(x, *statistics(train)) for x in (train, np.ones((2, 3), np.float32)))
    assert (a[:, [0, 2]] == 0).all() and (b[:, [0, 2]] == 0).all()
    np.testing.assert_allclose(a[:, 1], (varying - varying.mean()) / varying.std(), atol=1e-5)


def test_stratified_split_keeps_proportions_and_depends_on_the_seed_alone():
    y = np.repeat([0, 1, 2, 3], [100, 50, 20, 1])
    train, val = stratified_split(y, 0.1, seed=3)
    assert sorted([*train, *val]) == list(range(171))
    assert np.bincount(y[val], minlength=4).tolist() == [10, 5, 2, 0]
    assert np.array_equal(val, stratified_split(y, 0.1, seed=3)[1])
    assert not np.array_equal(val, stratified_split(y, 0.1, seed=4)[1])


def test_choose_l2_fits_on_one_part_and_scores_on_the_other():
    x, y = make_classes(400, 8, 4, spread=0.3)
    best, table, _ = choose_l2(x, y, 4, Curvature(x), grid=(1e-3, 1e1, 1e-1), seed=5)
    assert [l2 for l2, _ in table] == [1e1, 1e-1, 1e-3]
    train, val = stratified_split(y, 0.1, seed=5)
    for l2, accuracy in table:
        weight, bias, _ = logistic_regression(x[train], y[train], 4, l2)
        assert accuracy == pytest.approx(np.mean(np.argmax(x[val] @ weight.T + bias, axis=1) == y[val]))
    assert dict(table)[best] == max(accuracy for _, accuracy in table)


def test_choose_l2_takes_the_strongest_of_equals():
    x = np.repeat([[-1.0], [1.0]], 50, axis=0).astype(np.float32)
    best, table, _ = choose_l2(x, np.repeat([0, 1], 50), 2, Curvature(x), grid=(1e-4, 1e-2, 1.0))
    assert {accuracy for _, accuracy in table} == {1.0}
    assert best == 1.0


def test_classes_that_differ_along_a_weak_direction_are_found():
    """Where stronger penalties all give chance, the search must go on: here 20 strong directions hide a weak one."""
    g = np.random.default_rng(1)
    y = np.arange(6000) % 10
    x = g.normal(size=(6000, 20)) @ g.normal(size=(20, 64)) + 0.01 * g.normal(size=(6000, 64))
    x += 0.005 * g.normal(size=(10, 64))[y]
    r = linear_probe(x[:5000], y[:5000], x[5000:], y[5000:], 10)
    assert r.accuracy > 0.9 and r.l2 < 1e-5 and r.final.converged
    assert max(accuracy for l2, accuracy in r.sweep if l2 >= 1e-2) < 0.2


def test_an_almost_collapsed_encoder_is_worth_what_its_weak_directions_tell():
    g = np.random.default_rng(2)
    y = np.arange(6000) % 10
    latent = g.normal(size=(6000, 8)) + 1.2 * g.normal(size=(10, 8))[y]
    directions = np.linalg.qr(g.normal(size=(32, 8)))[0].T
    x = ((latent * 10.0 ** -np.arange(-1, 3, 0.5)) @ directions).astype(np.float32)
    assert 1 < rank_me(x) < 3
    weak, strong = (linear_probe(f[:5000], y[:5000], f[5000:], y[5000:], 10) for f in (x, latent))
    assert strong.accuracy > 0.7
    assert weak.accuracy > strong.accuracy - 0.01


def test_a_penalty_at_the_edge_of_the_grid_is_reported():
    x, y = make_classes(600, 8, 4, spread=0.4)
    r = linear_probe(x, y, x, y, 4)
    l2s = sorted(l2 for l2, _ in r.sweep)
    assert l2s[0] == 1e-8 and l2s[-1] == 100 and len(l2s) == 11
    assert [replace(r, l2=l2).at_edge for l2 in l2s] == ["weakest", *[None] * 9, "strongest"]


def test_probe_result_is_consistent():
    x, y, test_x, test_y = split_classes(600, 150, 8, 4, spread=0.4)
    r = linear_probe(x, y, test_x, test_y, 4)
    assert r.confusion.shape == (4, 4) and r.confusion.sum() == 150
    assert r.confusion.sum(axis=1).tolist() == np.bincount(test_y).tolist()
    assert r.confusion.sum(axis=0).tolist() == np.bincount(r.predictions, minlength=4).tolist()
    assert r.confusion[2, 3] == np.sum((test_y == 2) & (r.predictions == 3))
    assert r.accuracy == np.trace(r.confusion) / 150 == np.mean(r.predictions == test_y)
    assert 0.5 < r.accuracy < 1.0
    assert r.final.converged and r.final.gradient_norm < 1e-5 and r.final.iterations > 0
    assert r.l2 in [l2 for l2, _ in r.sweep]


def test_test_set_has_no_influence_on_the_fit():
    x, y, test_x, test_y = split_classes(300, 90, 6, 3)
    a = linear_probe(x, y, test_x, test_y, 3)
    b = linear_probe(x, y, np.vstack([test_x[:30], test_x * 100]), np.concatenate([test_y[:30], 2 - test_y]), 3)
    assert (a.l2, a.sweep, a.final) == (b.l2, b.sweep, b.final)
    assert np.array_equal(a.predictions[:30], b.predictions[:30])


def test_probe_ignores_scale_shift_and_constant_features():
    x, y, test_x, test_y = split_classes(400, 200, 6, 3)
    scale = np.array([1e-6, 1e-3, 1, 3, 1e3, -1e6], np.float32)
    shift = np.array([0, 1e-3, -2, 5, 1e3, 1e6], np.float32)

    def changed(x):
        return np.column_stack([x * scale + shift, np.full(len(x), 0.7, np.float32)])

    a = linear_probe(x, y, test_x, test_y, 3)
    b = linear_probe(changed(x), y, changed(test_x), test_y, 3)
    assert (a.l2, a.sweep) == (b.l2, b.sweep)
    assert np.array_equal(a.predictions, b.predictions)


def test_probe_of_collapsed_features_is_the_most_frequent_class():
    y = np.repeat([0, 1, 2], [50, 90, 60])
    ones = np.ones((200, 4), np.float32)
    r = linear_probe(ones, y, ones, y, 3)
    assert r.accuracy == 90 / 200


def test_probe_with_a_class_missing_from_training():
    x, y = make_classes(300, 5, 3, spread=2.0)
    seen = y != 2
    r = linear_probe(x[seen], y[seen], x, y, 3)
    assert r.final.converged
    assert r.confusion[:, 2].sum() == 0 and r.confusion[2].sum() == 100


# ---------------------------------------------------------------------------------------------- nearest neighbours


def test_knn_is_the_weighted_vote_written_as_loops():
    x, y, test_x, test_y = split_classes(200, 300, 5, 3, spread=0.4)  # more than one block of test rows
    right = 0
    for query, label in zip(test_x, test_y):
        neighbours = sorted(
            ((query @ row / np.linalg.norm(query) / np.linalg.norm(row), c) for row, c in zip(x, y)), reverse=True
        )
        votes = [0.0] * 3
        for similarity, c in neighbours[:7]:
            votes[c] += np.exp(similarity / 0.07)
        right += votes.index(max(votes)) == label
    accuracy = knn_accuracy(x, y, test_x, test_y, 3, k=7)
    assert accuracy == right / 300
    assert 0.4 < accuracy < 1.0


@pytest.mark.parametrize(
    ("dtype", "scales"), [(np.float32, [1e-32, 1e-25, 1e12, 1e19, 1e37]), (np.float64, [1e-250, 1e-160, 1e160, 1e300])]
)
def test_neighbours_are_the_same_at_every_scale(dtype, scales):
    """Squares of float32 numbers end at 1e±38, of float64 at 1e±308."""
    bank, queries = (np.random.default_rng(i).normal(size=(300, 8)).astype(dtype) for i in range(2))
    nearest, cosines = nearest_neighbours(bank, queries, 5)
    closest = closest_rows(bank, queries)
    for scale in map(dtype, scales):
        same, similar = nearest_neighbours(bank * scale, queries / 3, 5)
        np.testing.assert_array_equal(same, nearest)
        np.testing.assert_allclose(similar, cosines, atol=1e-6)
        np.testing.assert_array_equal(nearest_neighbours(bank, queries * scale, 5)[0], nearest)
        np.testing.assert_array_equal(closest_rows(bank * scale, queries * scale), closest)


def test_knn_accepts_a_row_of_zeros_and_refuses_zero_neighbours():
    x, y = make_classes(30, 4, 3)
    assert knn_accuracy(x, y, np.zeros((1, 4)), np.array([0]), 3) in (0.0, 1.0)
    with pytest.raises(ConfigError, match="k = 0"):
        knn_accuracy(x, y, x, y, 3, k=0)


# ---------------------------------------------------------------------------------------------- monitors of collapse


def test_feature_std():
    x = np.array([[0.0, 10.0], [2.0, 10.0], [0.0, 10.0], [2.0, 10.0]], np.float32)
    assert feature_std(x) == pytest.approx(0.5)
    assert feature_std(np.ones((5, 3))) == 0
    x = 1e8 + np.random.default_rng(0).normal(size=(50, 4))  # another byte order keeps the digits
    assert feature_std(x.astype(x.dtype.newbyteorder())) == feature_std(x) > 0.5


def test_rank_me():
    g = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(g.normal(size=(40, 16)))
    assert rank_me(rotation) == pytest.approx(16, rel=1e-4)
    assert rank_me(np.outer(g.normal(size=40), g.normal(size=16))) == pytest.approx(1, rel=1e-3)
    assert rank_me(np.diag([1.0, 0.0, 0.0])) == pytest.approx(1, rel=1e-4)  # zeros that a logarithm can't take
    assert rank_me(np.diag([3.0, 1.0])) == pytest.approx(4 / 3**0.75, rel=1e-4)  # entropy of (3/4, 1/4)
    assert rank_me(np.zeros((40, 16))) == 0


def test_content_r2_of_the_perfect_the_positional_and_the_worse():
    g = np.random.default_rng(0)
    position = g.permutation(np.repeat(np.arange(6), 20))
    target = (g.normal(size=(6, 8))[position] * 3 + g.normal(size=(120, 8))).astype(np.float32)
    positional = np.stack([target[position == p].mean(axis=0) for p in range(6)])[position]
    assert content_r2(target, target, position, 6) == 1
    assert content_r2(positional, target, position, 6) == pytest.approx(0, abs=1e-6)
    assert content_r2((target + positional) / 2, target, position, 6) == pytest.approx(0.75, abs=1e-6)
    assert content_r2(2 * positional - target, target, position, 6) == pytest.approx(-3, abs=1e-5)


def test_content_r2_leaves_out_positions_seen_once_and_does_not_need_all():
    g = np.random.default_rng(0)
    position, target = np.array([1, 1, 4, 4, 7]), g.normal(size=(5, 3))
    prediction = target + g.normal(size=(5, 3))
    expected = content_r2(prediction[:4], target[:4], position[:4], 9)
    prediction[4] = 1e6
    assert content_r2(prediction, target, position, 9) == pytest.approx(expected)


def test_content_r2_is_nan_where_there_is_no_content():
    g = np.random.default_rng(0)
    target = g.normal(size=(3, 4)).astype(np.float32)
    assert np.isnan(content_r2(target, target, np.array([0, 1, 2]), 3))
    position = np.repeat([0, 1, 2], 10)
    assert np.isnan(content_r2(target[position] + 1, target[position], position, 3))


# ---------------------------------------------------------------------------------------------- errors of the user


@pytest.mark.parametrize("evaluate", [linear_probe, knn_accuracy])
def test_bad_data_is_named_in_one_line(evaluate):
    x, y = make_classes(40, 4, 2)
    nan = x.copy()
    nan[3, 1] = np.nan
    cases = [
        ((nan, y, x, y, 2), "1 of 40 rows of the training features contain NaN"),
        ((x, y, nan, y, 2), "1 of 40 rows of the test features contain NaN"),
        ((x, y[:-1], x, y, 2), r"training labels have shape \(39,\) for 40 rows"),
        ((x, y, x, y[:-1], 2), r"test labels have shape \(39,\) for 40 rows"),
        ((x, y + 1, x, y, 2), "training labels run from 1 to 2: expected 0 to 1"),
        ((x, y.astype(float), x, y, 2), "training labels are float64: expected integers"),
        ((x, y, x[:, :3], y, 2), "training rows have 4 features, others 3"),
        ((x[0], y, x, y, 2), r"training features have shape \(4,\)"),
        ((x[:0], y[:0], x, y, 2), r"training features have shape \(0, 4\)"),
        ((x, y, x + 1j, y, 2), "test features: a Tensor holds real numbers; got ndarray of dtype complex"),
        ((x, y, np.ma.masked_array(x, x > 0), y, 2), "test features: a masked array would lose its mask"),
        ((x, np.ma.masked_array(y, y > 0), x, y, 2), "training labels: a masked array would lose its mask"),
    ]
    for arguments, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            evaluate(*arguments)
        assert "\n" not in str(caught.value)


def test_too_few_rows_to_choose_a_penalty():
    with pytest.raises(DataError, match="at least two rows per class"):
        linear_probe(np.eye(3), np.arange(3), np.eye(3), np.arange(3), 3)
    with pytest.raises(DataError, match="^1 labelled row can't be split"):
        linear_probe(np.eye(1), [0], np.eye(1), [0], 2)


def test_monitors_refuse_what_they_cannot_measure():
    x = np.ones((4, 3), np.float32)
    with pytest.raises(DataError, match="NaN"):
        feature_std(x * np.nan)
    with pytest.raises(DataError, match="NaN"):
        rank_me(x * np.inf)
    with pytest.raises(DataError, match="their shapes must be equal"):
        content_r2(x[:, :2], x, np.zeros(4, int), 1)
    with pytest.raises(DataError, match="positions run from 0 to 5: expected 0 to 4"):
        content_r2(x, x, np.array([0, 1, 2, 5]), 5)


def test_inputs_are_not_modified_and_need_not_be_contiguous():
    x, y = make_classes(200, 8, 3)
    wide = np.asfortranarray(x)[:, ::2]
    before = wide.copy()
    a = linear_probe(wide, y, wide, y, 3)
    knn_accuracy(wide, y, wide, y, 3)
    assert np.array_equal(wide, before)
    assert np.array_equal(a.predictions, linear_probe(before, y, before, y, 3).predictions)
