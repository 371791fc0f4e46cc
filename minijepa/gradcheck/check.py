"""Analytic gradients, from the tape, against numeric ones, from finite differences."""

import functools
from dataclasses import dataclass, replace

import numpy as np

from minijepa.autograd import Tensor, as_float_array
from minijepa.backend import rng, to_numpy, xp_of
from minijepa.errors import GradcheckError
from minijepa.gradcheck.watch import WatchingTape

STEP = 1e-3  # of a difference, for inputs of scale 1
TOLERANCE = 1e-6  # of a gradient's relative error
FLOOR = 1e-3  # gradients smaller than this are compared absolutely
EPS = float(np.finfo(np.float64).eps)


def gradcheck(fn, *arrays, seed=0, tolerance=TOLERANCE, h=None):
    """Check the gradient of ``fn`` for each of its inputs; return the largest error.

    With a random cotangent c of y's shape, L(x) = <c, fn(x)> = Σ c y is a scalar. The tape computes its gradient by
    backward passes that start from c; forward passes alone give

        dL/dx[i] ≈ (8 [L(x + h eᵢ) − L(x − h eᵢ)] − [L(x + 2h eᵢ) − L(x − 2h eᵢ)]) / 12h     off by h⁴ L⁽⁵⁾ / 30
        error    = max |analytic − numeric| / max(max |analytic|, 1e-3)                      of one input

    The floor of 1e-3 is for gradients that are zero (a key's bias, which softmax does not see). A cotangent of ones
    would be blind: softmax's outputs sum to 1, so L would be constant and a backward that returns zeros would pass.

    ``fn``: takes one Tensor for each array and returns a Tensor of any shape. It must be smooth within 2h of ``arrays``
    (no ties under max) and a function of its inputs alone.
    ``arrays``: converted to float64; a float64 array is used as it lies in memory, strides and all.
    ``seed``: of the cotangent.
    ``h``: the step; by default 1e-3 times the largest |x| of an array, but at most 1e-3. (LayerNorm and ln curve on the
    scale of their input, softmax and GELU on the scale 1, however large the input.) Next to large numbers, such as x²
    at 1e7, it may be lost in float64's rounding: then steps 10, 100 ... times as large are tried too.

    Raises GradcheckError for an error above ``tolerance``, naming the worst element and both of its numbers, and saying
    so if rounding alone can explain it; for an input that received no gradient; for an input, output or dy that was
    written into; for outputs that are not float64 or differ between two calls.
    """
    comparisons = compare_gradients(fn, *arrays, seed=seed, h=h)
    worst = max(comparisons, key=lambda comparison: comparison.error)
    if worst.error > tolerance:
        raise GradcheckError(worst.report(tolerance))
    return worst.error


def compare_gradients(fn, *arrays, seed=0, h=None):
    """The comparisons that :func:`gradcheck` judges, a :class:`Comparison` for each array, in their order."""
    arrays = [xp_of(a).asarray(as_float_array(a, np.empty(0)), dtype=np.float64) for a in arrays]
    for i, array in enumerate(arrays):
        if not bool(xp_of(array).isfinite(array).all()):
            raise GradcheckError(f"input {i} {array.shape} holds a nan or an infinity, so no difference can be taken")
    if h is not None and not h > 0:
        raise GradcheckError(f"h must be above 0, got {h}")
    copies = [a.copy() for a in arrays]
    inputs = [Tensor(a, requires_grad=True) for a in arrays]
    with _MeasuringTape() as tape:
        y = fn(*inputs)
    _check_output(y, tape)
    cotangent = xp_of(y.data).asarray(rng(seed, "gradcheck").standard_normal(y.shape))
    output = y.data.copy()
    tape.backward(y, cotangent)

    for i, (array, copy, tensor) in enumerate(zip(arrays, copies, inputs)):
        if tensor.grad is None:
            raise GradcheckError(
                f"input {i} {array.shape} received no gradient: its backward returned None, or fn does not use it "
                "(or uses its .data, or detach)"
            )
        if not (array == copy).all():
            raise GradcheckError(f"input {i} {array.shape} was written into by forward or backward")
    if not (y.data == output).all():
        raise GradcheckError(f"the output {output.shape} was written into by backward: fn's caller has it too")

    tensors = [Tensor(copy) for copy in copies]  # contiguous, whatever the strides of the arrays

    def value():
        return fn(*tensors).data

    if not np.allclose(to_numpy(value()), to_numpy(output), rtol=1e-9, atol=1e-9):
        raise GradcheckError("fn gave two different outputs for the same input: it is random, or reads strides wrongly")

    comparisons = []
    for i, (copy, tensor) in enumerate(zip(copies, inputs)):
        differences = functools.partial(numeric_gradient, value, copy, cotangent)
        step = step_of(copy) if h is None else h
        known = (i, to_numpy(copy), to_numpy(tensor.grad), differences(h=step), step)
        first = Comparison(*known, to_numpy(cotangent), tape.rounding)
        comparisons.append(first if h is not None else _wider(first, differences))
    return comparisons


def _wider(first, differences):
    """``first``; or, if its error may be rounding, a comparison with a wider step that passes, if there is one."""
    tried = first
    while tried.error > TOLERANCE and tried.may_be_rounding(TOLERANCE):
        tried = replace(tried, h=10 * tried.h, numeric=differences(h=10 * tried.h))
    return tried if tried.error <= TOLERANCE else first


class _MeasuringTape(WatchingTape):
    """Adds up how far rounding may move L = <cotangent, fn(x)>: by gradient times error for each element that an
    operation takes or returns, as if all were off by eps times their size. Refuses a backward that writes into dy."""

    rounding = 0.0

    def _gradients(self, entry, dy):
        kept = to_numpy(dy.copy())
        gradients = super()._gradients(entry, dy)
        if not np.array_equal(to_numpy(dy), kept, equal_nan=True):
            what = f"dy {dy.shape} was written into by the backward of {entry.op.op_name}"
            raise GradcheckError(f"{what}: it belongs to the engine, and may be another value's gradient too")
        for tensor, gradient in zip([entry.output, *entry.inputs], [dy, *gradients]):
            if gradient is not None:
                self.rounding += EPS * float(abs(gradient * tensor.data).sum())
        return gradients


def numeric_gradient(value, array, cotangent=1.0, h=None, entries=None):
    """d <cotangent, value()> / d array by the differences of :func:`gradcheck`, as a NumPy array.

    ``value``: a function without arguments whose result depends on ``array``, such as the data of a model's parameter.
    ``array``: float64; each element is changed in place and restored.
    ``entries``: positions in the flattened array; the result is then (len(entries),), and of array's shape if None.
    """
    if array.dtype != np.float64:
        raise GradcheckError(f"differences of {array.dtype} have too few digits: use float64, IJEPA(dtype=np.float64)")
    h = step_of(array) if h is None else h
    positions = np.arange(array.size) if entries is None else entries
    slopes = np.empty(len(positions))
    for i, position in enumerate(positions):
        index = np.unravel_index(position, array.shape)
        kept = float(array[index])
        try:
            near = _value_at(value, array, index, kept + h) - _value_at(value, array, index, kept - h)
            far = _value_at(value, array, index, kept + 2 * h) - _value_at(value, array, index, kept - 2 * h)
        finally:
            array[index] = kept
        slope = (8 * near - far) / (12 * h)  # of each output: subtracting before summing loses fewer digits
        slopes[i] = float(xp_of(slope).sum(slope * cotangent))
    return slopes.reshape(array.shape) if entries is None else slopes


def gradient_error(analytic, numeric):
    """max |analytic − numeric| / max(max |analytic|, 1e-3); infinite if either holds a nan or an infinity."""
    if not analytic.size:
        return 0.0
    error = float(np.abs(analytic - numeric).max() / max(np.abs(analytic).max(), FLOOR))
    return error if np.isfinite(error) else float("inf")


@dataclass(frozen=True)
class Comparison:
    """Both gradients of one input: number ``i`` of ``fn``, with the values ``x``."""

    i: int
    x: np.ndarray
    analytic: np.ndarray  # of x's shape, like ``numeric``
    numeric: np.ndarray
    h: float
    cotangent: np.ndarray
    rounding: float  # of L

    @property
    def error(self):
        return gradient_error(self.analytic, self.numeric)

    @property
    def noise(self):
        """How far rounding, of L and of x + h, may move each numeric slope."""
        return (self.rounding + EPS * np.abs(self.x * self.analytic)) / self.h

    def may_be_rounding(self, tolerance):
        """Whether the rounding of the differences alone may explain an error above ``tolerance``."""
        largest = max(np.abs(self.analytic).max(initial=0), FLOOR)
        return bool((np.abs(self.analytic - self.numeric) <= tolerance * largest + self.noise).all())

    def report(self, tolerance):
        """What is wrong, as a paragraph: the worst element, both numbers, and whether they are proportional."""
        difference = np.abs(self.analytic - self.numeric)
        rounded = self.may_be_rounding(tolerance)
        verdict = "can't be judged" if rounded else "is wrong"
        index = np.unravel_index(int(difference.argmax()), self.x.shape)
        element = f"[{', '.join(str(int(k)) for k in index)}]"
        wrong = int((~(difference <= tolerance * max(np.abs(self.analytic).max(), FLOOR))).sum())  # a nan is wrong too
        lines = [
            f"the gradient of input {self.i} {verdict}: error {self.error:.1e}, tolerance {tolerance:.0e}",
            f"  input {self.i}    shape {self.x.shape}; worst at {element}, where x = {self.x[index]:.6g}",
            f"  analytic   {self.analytic[index]: .10g}",
            f"  numeric    {self.numeric[index]: .10g}    (central differences, h = {self.h:.1e})",
            f"  error      max|analytic − numeric| = {difference.max():.3g}, max|analytic| = "
            f"{np.abs(self.analytic).max():.3g}",
            f"  wrong at   {wrong} of {difference.size} elements",
            f"  cotangent  shape {self.cotangent.shape}, norm {np.linalg.norm(self.cotangent):.3g}",
        ]
        if rounded:
            lines.append(
                f"  rounding   may move the numeric gradient by {self.noise.max():.1g}: the step is below the "
                "resolution of these numbers. Pass a larger h, or smaller numbers"
            )
        elif (factor := self._factor()) is not None:
            meaning = {-1: "a sign is wrong", 0: "backward returns zeros"}.get(round(factor, 6), "a factor is wrong")
            lines.append(f"  hint       at every element, analytic = {factor:.6g} × numeric: {meaning}")
        return "\n".join(lines)

    def _factor(self):
        """The k of analytic = k numeric, if there is one: −1 is a wrong sign, n a forgotten mean. Else None."""
        square = float(np.vdot(self.numeric, self.numeric))
        if self.numeric.size < 2 or not square > 0:
            return None
        factor = float(np.vdot(self.analytic, self.numeric)) / square
        return factor if gradient_error(self.analytic, factor * self.numeric) < 1e-6 else None


def step_of(array):
    largest = float(abs(array).max()) if array.size else 0.0
    return STEP * min(1.0, largest or 1.0)


def _value_at(value, array, index, x):
    array[index] = x
    return value() + 0.0  # a copy: reshape and the like return a view of the array, which is about to change


def _check_output(y, tape):
    if not isinstance(y, Tensor):
        raise GradcheckError(f"fn must return a Tensor, got {type(y).__name__}")
    if not (tape.entries and y.requires_grad and y._mark is tape._mark):
        raise GradcheckError("fn's output was not computed from its inputs by recorded operations: nothing to check")
    if y.dtype != np.float64:
        raise GradcheckError(f"fn was given float64 and returned {y.dtype}: too few digits for a difference")
    if not bool(xp_of(y.data).isfinite(y.data).all()):
        raise GradcheckError(f"the output {y.shape} holds a nan or an infinity, where there is no difference")
