"""How good are features? A linear probe, a nearest-neighbour vote, and monitors of collapse.

Everything here works on arrays of features, (N, D), and knows nothing of the network that made them. The linear probe
is the standard measure of self-supervised learning: a linear classifier on frozen features. Its number can be trusted
only if the classifier is really fitted, so it is fitted to convergence, by a deterministic solver without a learning
rate, and its one hyper-parameter is chosen on held-out training images. The test set is looked at once.
"""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from minijepa.backend import rng
from minijepa.errors import ConfigError, DataError

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0)
MAX_THREADS = min(os.cpu_count() or 1, 16)  # each holds a block of kNN similarities, up to 100 MB
KNN_TEMPERATURE = 0.07  # of Wu et al. 2018 and of DINO
RANK_ME_EPS = 1e-7  # of Garrido et al. 2023


@dataclass(frozen=True)
class FitInfo:
    """How a fit ended: ``gradient_norm`` is the Euclidean norm of the whole gradient, computed in float64."""

    iterations: int
    gradient_norm: float
    converged: bool


@dataclass(frozen=True)
class ProbeResult:
    """What :func:`linear_probe` found.

    ``sweep`` lists (l2, accuracy on the held-out part of the training set); ``iterations``, ``gradient_norm`` and
    ``converged`` are those of the final fit; ``confusion[t, p]`` counts the test rows of class t that were taken for p.
    """

    accuracy: float
    l2: float
    sweep: list[tuple[float, float]]
    iterations: int
    gradient_norm: float
    converged: bool
    confusion: np.ndarray
    predictions: np.ndarray


# ------------------------------------------------------------------------------------------------- the linear probe


def linear_probe(train_x, train_y, test_x, test_y, num_classes, seed=0):
    """Accuracy of a linear classifier on features: train (N, D) and (N,), test (M, D) and (M,) -> ProbeResult.

    Features are standardised with the training statistics, the penalty is chosen on a tenth of the training set
    (:func:`choose_l2`), the classifier is fitted again to all of it, and the test set is classified once.
    Raises DataError for features or labels that don't fit together.
    """
    train_x, train_y = _checked(train_x, train_y, num_classes, "training")
    test_x, test_y = _checked(test_x, test_y, num_classes, "test")
    _check_same_width(train_x, test_x)
    train_x, test_x = standardise(train_x, test_x)
    l2, sweep = choose_l2(train_x, train_y, num_classes, seed=seed)
    weight, bias, info = logistic_regression(train_x, train_y, num_classes, l2)
    predictions = _classify(test_x, weight, bias)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (test_y, predictions), 1)
    return ProbeResult(
        accuracy=float(np.mean(predictions == test_y)),
        l2=l2,
        sweep=sweep,
        iterations=info.iterations,
        gradient_norm=info.gradient_norm,
        converged=info.converged,
        confusion=confusion,
        predictions=predictions,
    )


def standardise(train, *others):
    """(x − mean) / std per feature, with the statistics of ``train``: a list of float32 arrays, ``train`` first.

    A feature that is constant in ``train`` (std below float32's rounding of its mean) has nothing to teach; it becomes
    0 in all arrays, where division by a tiny std would turn noise into a feature.
    """
    train = _checked_features(train, "training")
    others = [_checked_features(x, "other") for x in others]
    for x in others:
        _check_same_width(train, x)
    mean = sum(_map_rows(lambda x: x.sum(axis=0, dtype=np.float64), train)) / len(train)
    variance = sum(_map_rows(lambda x: np.square(x - mean).sum(axis=0), train)) / len(train)
    std = np.sqrt(variance)
    std[std <= 1e-6 * np.abs(mean)] = np.inf
    return [
        np.concatenate(list(_map_rows(lambda x: ((x - mean) / std).astype(np.float32), x))) for x in (train, *others)
    ]


def choose_l2(x, y, num_classes, grid=L2_GRID, val_fraction=0.1, seed=0):
    """The penalty whose classifier is best on a held-out part of the training set: x (N, D) standardised, y (N,).

    ``val_fraction`` of each class is held out, drawn by ``seed`` alone. The grid is walked from strong to weak, each
    fit starting from the one before it. Returns the best l2 (of equals, the strongest) and the table of
    (l2, held-out accuracy).
    """
    x, y = _checked(x, y, num_classes, "training")
    train, val = stratified_split(y, val_fraction, seed)
    train_x, train_y, val_x, val_y = x[train], y[train], x[val], y[val]
    second_moment = _second_moment(train_x)
    table, theta = [], None
    for l2 in sorted(grid, reverse=True):
        theta, _ = _fit(train_x, train_y, num_classes, l2, second_moment, theta)
        predictions = _classify(val_x, theta[:, :-1], theta[:, -1])
        table.append((float(l2), float(np.mean(predictions == val_y))))
    best, _ = max(table, key=lambda row: row[1])  # max keeps the first of equals
    return best, table


def stratified_split(y, val_fraction, seed):
    """Sorted row numbers (train, val) that hold out ``val_fraction`` of each class, at least one of two or more."""
    generator = rng(seed, "probe split")
    held_out = np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = generator.permutation(np.flatnonzero(y == label))
        count = max(round(val_fraction * len(rows)), 1) if len(rows) > 1 else 0
        held_out[rows[:count]] = True
    if not held_out.any() or held_out.all():
        raise DataError(f"{len(y)} labelled rows can't be split for the choice of l2: give at least two rows a class")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


# ------------------------------------------------------------------------------------------------ logistic regression


def logistic_regression(x, y, num_classes, l2, start=None, tolerance=1e-5, max_iterations=1000):
    """Multinomial logistic regression, to convergence: x (N, D), y (N,) -> weight (C, D), bias (C,), FitInfo.

    Minimises :func:`loss_and_gradient` until the Euclidean norm of its whole gradient is below ``tolerance``. ``start``
    is an optional (weight, bias) to start from. The results are float64. A fit that does not converge says so in
    ``FitInfo.converged`` and in a RuntimeWarning.

    Plain L-BFGS is slow on correlated features, whose curvature differs by orders of magnitude between directions:
    286 steps for the raw pixels of CIFAR-10 (l2 = 0.1), where this takes 31. Böhning's bound on the curvature makes
    the difference. A row's Hessian by its logits is diag(p) − p pᵀ, and

        diag(p) − p pᵀ  ≼  (I − 11ᵀ/C) / 2  ≼  I/2        for every p,

    so with x̃ = [x, 1] the whole Hessian is bounded, wherever it is taken, by the same matrix A for every class,

        A = ½ X̃ᵀX̃/N + l2 diag(1, ..., 1, 0),

    and L-BFGS starts its estimate of the inverse Hessian from A⁻¹, which is computed once.

    float32 features are multiplied in float32 (sums over blocks of rows in float64) until the norm is below
    ``tolerance``, then in float64 from there on, which usually confirms the point without a further step.

    Sources: Böhning, "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44 (1992), for the bound;
    Nocedal & Wright, "Numerical Optimization", 2nd ed. (2006), algorithms 7.4 and 7.5, for L-BFGS.
    """
    x, y = _checked(x, y, num_classes, "training")
    theta = None if start is None else np.column_stack(start).astype(np.float64)
    theta, info = _fit(x, y, num_classes, l2, _second_moment(x), theta, tolerance, max_iterations)
    return theta[:, :-1], theta[:, -1], info


def loss_and_gradient(theta, x, y, l2, dtype=np.float64):
    """Mean cross-entropy + l2/2 ‖W‖² and its gradient, float64; theta = [W, b] is (C, D+1), x (N, D), y (N,).

    With logits z = W x + b and p = softmax(z), a row's loss is log Σⱼ exp zⱼ − z_y, and

        ∂/∂zₖ = exp zₖ / Σⱼ exp zⱼ − [k = y] = pₖ − [k = y] =: gₖ

    By the chain rule (zₖ = Σ_d W_kd x_d + bₖ), averaged over the rows, with the penalty on W alone:

        dW = Gᵀ X / N + l2 W        db = Gᵀ 1 / N        where row i of G is that row's g

    ``dtype`` is that of the products; the sums over blocks of rows are float64.
    """
    weight, bias = theta[:, :-1].astype(dtype), theta[:, -1].astype(dtype)

    def block(x, y):
        x = x.astype(dtype, copy=False)
        rows = np.arange(len(y))
        z = x @ weight.T + bias
        z -= z.max(axis=1, keepdims=True)
        z_y = z[rows, y]
        p = np.exp(z, out=z)
        total = p.sum(axis=1, keepdims=True)
        loss = (np.log(total[:, 0]) - z_y).sum(dtype=np.float64)
        p /= total
        p[rows, y] -= 1
        return loss, p.T @ x, p.sum(axis=0, dtype=np.float64)

    loss, gradient = 0.0, np.zeros_like(theta)
    for block_loss, dw, db in _map_rows(block, x, y):
        loss += block_loss
        gradient[:, :-1] += dw
        gradient[:, -1] += db
    loss /= len(x)
    gradient /= len(x)
    gradient[:, :-1] += l2 * theta[:, :-1]
    return float(loss) + 0.5 * l2 * float(np.sum(theta[:, :-1] ** 2)), gradient


def _fit(x, y, num_classes, l2, second_moment, theta=None, tolerance=1e-5, max_iterations=1000):
    """Logistic regression from theta (zeros if None), given X̃ᵀX̃/N; returns theta (C, D+1) and FitInfo."""
    if not l2 > 0:
        raise ConfigError(f"l2 = {l2}: the penalty must be positive, or separable classes would have no solution")
    if theta is None:
        theta = np.zeros((num_classes, x.shape[1] + 1))
    bound = 0.5 * second_moment
    bound[np.arange(x.shape[1]), np.arange(x.shape[1])] += l2
    inverse_bound = np.linalg.inv(bound)

    iterations = 0
    for dtype in (np.float32, np.float64) if x.dtype == np.float32 else (np.float64,):
        theta, gradient, steps = minimise(
            lambda theta, dtype=dtype: loss_and_gradient(theta, x, y, l2, dtype),
            theta,
            lambda gradient: gradient @ inverse_bound,
            tolerance,
            max_iterations - iterations,
        )
        iterations += steps
    norm = float(np.linalg.norm(gradient))
    info = FitInfo(iterations, norm, norm < tolerance)
    if not info.converged:
        warnings.warn(
            f"logistic regression (l2 = {l2:g}) did not converge: gradient norm {norm:.1e} after {iterations} "
            f"iterations, wanted {tolerance:.1e}",
            RuntimeWarning,
            stacklevel=3,
        )
    return theta, info


def _second_moment(x):
    """X̃ᵀX̃/N for X̃ = [x, 1], (D+1, D+1). In float64: rounding must not make a small eigenvalue negative."""
    total = np.zeros((x.shape[1] + 1, x.shape[1] + 1))

    def block(x):
        extended = np.ones((len(x), x.shape[1] + 1))
        extended[:, :-1] = x
        return extended.T @ extended

    for part in _map_rows(block, x, block_rows=4096):
        total += part
    return total / len(x)


def minimise(objective, theta, precondition, tolerance, max_iterations, memory=20):
    """L-BFGS for a smooth convex function -> theta, its gradient, the number of steps taken.

    ``objective(theta)`` gives value and gradient; ``precondition(gradient)`` multiplies by a fixed estimate of the
    inverse Hessian. Ends when the gradient's norm is below ``tolerance``, after ``max_iterations``, or when no step
    along the search direction is an improvement any more: the caller judges by the gradient.
    """
    value, gradient = objective(theta)
    pairs = []
    for step in range(max_iterations):
        if np.linalg.norm(gradient) < tolerance:
            return theta, gradient, step
        direction = -_inverse_hessian_times(gradient, pairs, precondition)
        found = _line_search(objective, theta, value, gradient, direction)
        if found is None:
            return theta, gradient, step
        new_theta, value, new_gradient = found
        pairs = [*pairs[1 - memory :], (new_theta - theta, new_gradient - gradient)]
        theta, gradient = new_theta, new_gradient
    return theta, gradient, max_iterations


def _inverse_hessian_times(gradient, pairs, precondition):
    """The two-loop recursion (Nocedal & Wright, algorithm 7.4) from pairs s = Δtheta, y = Δgradient, oldest first.

    The first estimate is γ P with the preconditioner P, and γ = sᵀy / yᵀPy fits its scale to the newest pair.
    """
    q, alphas = gradient, []
    for s, y in reversed(pairs):
        alpha = np.vdot(s, q) / np.vdot(s, y)
        alphas.append(alpha)
        q = q - alpha * y
    r = precondition(q)
    if pairs:
        s, y = pairs[-1]
        r *= np.vdot(s, y) / np.vdot(y, precondition(y))
    for (s, y), alpha in zip(pairs, reversed(alphas)):
        r = r + (alpha - np.vdot(y, r) / np.vdot(s, y)) * s
    return r


def _line_search(objective, theta, value, gradient, direction, max_trials=30):
    """A step that meets the Wolfe conditions -> (theta, value, gradient) there; None if there is none.

    Bisection: a step without sufficient decrease is too long, one where the function still falls nearly as steeply
    as at the start is too short. The second condition ensures sᵀy > 0, which L-BFGS needs.

    Close to the minimum the decrease drowns in the rounding of the value. There the slopes decide: where a function is
    a parabola, sufficient decrease means slope(t) ≤ (2c − 1) slope(0), free of cancellation (the "approximate Wolfe"
    condition of Hager & Zhang, SIAM J. Optim. 16, 2005).
    """
    decrease, curvature, rounding = 1e-4, 0.9, 1e-7 * abs(value)
    slope = np.vdot(gradient, direction)
    if not slope < 0:
        return None
    t, too_short, too_long = 1.0, 0.0, np.inf
    for _ in range(max_trials):
        new_theta = theta + t * direction
        new_value, new_gradient = objective(new_theta)
        new_slope = np.vdot(new_gradient, direction)
        falls = new_value <= value + decrease * t * slope
        falls_by_slope = new_value <= value + rounding and new_slope <= (2 * decrease - 1) * slope
        if not (falls or falls_by_slope):
            too_long = t
        elif new_slope < curvature * slope:
            too_short = t
        else:
            return new_theta, new_value, new_gradient
        t = 2 * t if too_long == np.inf else 0.5 * (too_short + too_long)
    return None


def _classify(x, weight, bias):
    """The most likely class of each row, (N,)."""
    weight, bias = weight.astype(x.dtype), bias.astype(x.dtype)
    return np.concatenate(list(_map_rows(lambda x: np.argmax(x @ weight.T + bias, axis=1), x)))


# ------------------------------------------------------------------------------------------------ nearest neighbours


def knn_accuracy(train_x, train_y, test_x, test_y, num_classes, k=20):
    """Accuracy of a weighted vote of the k nearest training rows by cosine similarity; nothing is fitted.

    Features are taken as they are (not standardised) and L2-normalised. Each neighbour votes for its class with weight
    exp(similarity / 0.07), the form of Wu et al., "Unsupervised feature learning via non-parametric instance
    discrimination" (2018), and of DINO (Caron et al. 2021). ``k`` beyond the number of training rows means all of them.
    """
    train_x, train_y = _checked(train_x, train_y, num_classes, "training")
    test_x, test_y = _checked(test_x, test_y, num_classes, "test")
    _check_same_width(train_x, test_x)
    if k < 1:
        raise ConfigError(f"k = {k}: at least one neighbour must vote")
    k = min(k, len(train_x))
    train_x, test_x = _unit_rows(train_x), _unit_rows(test_x)

    def block(x, y):
        similarity = x @ train_x.T
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
        weight = np.exp(np.take_along_axis(similarity, nearest, axis=1) / KNN_TEMPERATURE)
        votes = np.zeros((len(x), num_classes))
        np.add.at(votes, (np.arange(len(x))[:, None], train_y[nearest]), weight)
        return np.count_nonzero(np.argmax(votes, axis=1) == y)

    return sum(_map_rows(block, test_x, test_y, block_rows=128)) / len(test_x)


def _unit_rows(x):
    """Rows divided by their length; a row of zeros stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(x.dtype).tiny)


# ------------------------------------------------------------------------------------------------ monitors of collapse


def feature_std(x):
    """Standard deviation over the samples, averaged over the features: x (N, D) -> float; 0 is complete collapse."""
    x = _checked_features(x, "monitored")
    return float(np.mean(np.std(x, axis=0, dtype=np.float64)))


def rank_me(x):
    """The effective number of dimensions that features use: x (N, D) -> float, from 1 to min(N, D); 0 for x = 0.

        exp(−Σₖ pₖ log pₖ),   pₖ = σₖ / Σⱼ σⱼ + 1e-7,   σ the singular values of x (not centred)

    Source: Garrido et al., "RankMe: assessing the downstream performance of pretrained self-supervised representations
    by their rank", ICML 2023.
    """
    x = _checked_features(x, "monitored")
    singular = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    if singular[0] == 0:
        return 0.0
    p = singular / singular.sum() + RANK_ME_EPS
    return float(np.exp(-np.sum(p * np.log(p))))


def content_r2(prediction, target, position, num_positions):
    """What predictions know beyond the position: prediction and target (T, D), position (T,) -> float, at most 1.

        1 − MSE(prediction, target) / MSE(mean of the targets at the same position, target)

    1 is perfect, 0 no better than knowing where the patch is, negative worse than that. A position that occurs once is
    its own mean and would flatter the baseline, so its row is left out of both errors. NaN if no position occurs twice
    or if the targets at each position are all the same: then there is no content to predict.
    """
    prediction = _checked_features(prediction, "predicted").astype(np.float64)
    target = _checked_features(target, "target").astype(np.float64)
    position = _checked_labels(position, len(target), num_positions, "positions")
    if prediction.shape != target.shape:
        raise DataError(f"predictions are {prediction.shape} but targets {target.shape}: they must be row by row alike")
    count = np.bincount(position, minlength=num_positions)
    mean = np.zeros((num_positions, target.shape[1]))
    np.add.at(mean, position, target)
    mean /= np.maximum(count, 1)[:, None]
    shared = count[position] > 1
    baseline = np.sum((mean[position] - target)[shared] ** 2)
    if baseline <= 1e-12 * np.sum(target[shared] ** 2):  # equal but for float32's rounding
        return float("nan")
    return float(1 - np.sum((prediction - target)[shared] ** 2) / baseline)


# ------------------------------------------------------------------------------------------------ rows and checks


def _map_rows(function, *arrays, block_rows=None):
    """Yield function(*blocks) for consecutive blocks of rows of the arrays, in order; threads compute them.

    The blocks depend on the shape alone, so what is added up in order has the same bits for every number of threads.
    """
    block_rows = block_rows or max(256, 2**18 // arrays[0].shape[1])  # about 1 MiB: used twice while in the cache
    starts = range(0, len(arrays[0]), block_rows)
    with ThreadPoolExecutor(MAX_THREADS) as pool:
        yield from pool.map(lambda i: function(*(a[i : i + block_rows] for a in arrays)), starts)


def _checked(x, y, num_classes, name):
    """Features and labels that fit together."""
    x = _checked_features(x, name)
    return x, _checked_labels(y, len(x), num_classes, f"{name} labels")


def _checked_features(x, name):
    """x as float32 (float64 stays), after checking that it is a non-empty finite matrix."""
    x = np.asarray(x)
    if x.dtype != np.float64:
        x = x.astype(np.float32, copy=False)
    if x.ndim != 2 or x.size == 0:
        raise DataError(f"{name} features have shape {x.shape}: expected (samples, features), at least one of each")
    bad = np.count_nonzero(~np.isfinite(x).all(axis=1))
    if bad:
        raise DataError(
            f"{bad} of {len(x)} rows of the {name} features hold NaN or infinity: the model that made them has diverged"
        )
    return x


def _checked_labels(y, rows, num_classes, name):
    """y as integers, after checking that there is one for each row and that all lie in 0 ... num_classes − 1."""
    y = np.asarray(y)
    if y.shape != (rows,):
        raise DataError(f"{name} have shape {y.shape} for {rows} rows of features: expected ({rows},)")
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name} are {y.dtype}: expected integers")
    if y.min() < 0 or y.max() >= num_classes:
        raise DataError(f"{name} run from {y.min()} to {y.max()}: expected 0 to {num_classes - 1}")
    return y.astype(np.int64)


def _check_same_width(train, other):
    """Arrays of features can be compared only if they come from the same kind of model."""
    if train.shape[1] != other.shape[1]:
        raise DataError(f"training rows have {train.shape[1]} features, others {other.shape[1]}: use one encoder")
