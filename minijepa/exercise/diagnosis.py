"""What is wrong with a gradient: it is compared with the right one and with typical mistakes."""

import contextlib
import functools
import itertools

import numpy as np

from minijepa.autograd import unbroadcast
from minijepa.gradcheck import gradient_error

EQUAL = 1e-9  # relative: both are computed in float64, by formulas that differ only in rounding
RIGHT = (
    "the numbers are right here: the report above says what is wrong. (If that is about numbers too: is something kept "
    "outside of ctx?)"
)


def same(a, b):
    """Whether two arrays are equal except for rounding."""
    return a.shape == b.shape and gradient_error(a, b) < EQUAL


def diagnosis(desk, case, slots, j):
    """What is wrong with slot j of an attempt's result: RIGHT if nothing is, None if it is unknown."""
    lesson = desk.lesson
    entry, rights = desk.entry(lesson.op, case), desk.slots(lesson.op, case)
    try:
        mine = np.asarray(slots[j], np.float64)
    except (TypeError, ValueError):
        return "this is not an array of numbers."
    if slots[j] is None:
        return "still None."
    if mine.shape == entry.gradient_shapes[j]:  # which the engine would sum
        mine = unbroadcast(mine, rights[j].shape)
    if same(mine, rights[j]):
        return RIGHT

    @functools.cache
    def spoilt(*mistakes):
        """Slot j with mistakes; None where they do not change it, can't be made together, or fail on these shapes."""
        with contextlib.suppress(Exception):
            gradient = np.asarray(desk.slots(lesson.variant(*mistakes), case)[j])
            return None if same(gradient, rights[j]) else gradient

    def told(count):
        for mistakes in itertools.combinations([m for m in lesson.mistakes if spoilt(m) is not None], count):
            gradient = spoilt(*mistakes)
            if gradient is not None and same(mine, gradient):
                return " And: ".join(lesson.mistakes[mistake] for mistake in mistakes)
        return None

    of_ones = desk.slots(lesson.op, case, np.ones(entry.output.shape))[j]
    return told(1) or in_general(mine, rights, j, of_ones, lesson.gradients) or told(2)


def in_general(mine, rights, j, of_ones, names):
    """What is wrong with a gradient, among mistakes that are possible in any operation; None if none fits."""
    right, name, x = rights[j], names[j], names[j][1:]
    if not np.isfinite(mine).all():
        return "it contains nan or infinity: a division by 0, the logarithm of 0, or an overflow."
    for other, gradient in zip(names, rights):
        if other != name and gradient is not None and same(mine, gradient):
            return f"this is {other}, in {name}'s place: the slots are in the order of forward's inputs."
    if mine.shape == right.shape:
        factor = float((mine * right).sum() / (right * right).sum()) if right.any() else 0.0
        if not mine.any():
            return "all zeros. Is the computed gradient also returned?"
        if same(mine, of_ones):
            return "dy is missing: this is the gradient of y's sum. The chain rule multiplies each slope by its dy."
        if same(mine, -right):
            return "the sign is wrong, and nothing else."
        if same(mine, factor * right):
            return f"everywhere {factor:.6g} times the right value: a factor is missing, or one too many."
    if right.ndim > 1 and same(mine, right.swapaxes(-1, -2)):
        return f"right, but transposed: {x} has shape {right.shape}, and so has its gradient."
    if mine.size == right.size and same(mine.reshape(right.shape), right):
        remedy = "keepdims=True" if mine.ndim < right.ndim else "No keepdims"
        return f"the right numbers, but of shape {mine.shape}: {x} has {right.shape}. {remedy}, or reshape."
    if right.ndim > 1 and not mine.ndim and same(mine, right.sum()):
        return f"everything was summed, but {x} has shape {right.shape}: sum only along axes that were copied."
    with contextlib.suppress(ValueError, IndexError):  # shapes that were not broadcast
        if same(unbroadcast(mine, right.shape), right):
            return (
                f"the sum over the copies is missing: {x} {right.shape} was repeated to {mine.shape}, each copy "
                "reaches L, and the paths add."
            )
    for axis in range(right.ndim):
        if mine.ndim < right.ndim and same(mine, right.sum(axis=axis)):
            return f"axis {axis} was summed, but {x} {right.shape} has this axis too: nothing was copied along it."
    return None
