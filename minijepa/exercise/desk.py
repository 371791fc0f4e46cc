"""The inputs of a lesson, and the operations that run on them."""

import dataclasses

import numpy as np

from minijepa.autograd import Tape, Tensor
from minijepa.backend import rng
from minijepa.errors import MinijepaError
from minijepa.gradcheck import compare_gradients
from minijepa.gradcheck.check import FLOOR, TOLERANCE
from minijepa.gradcheck.draws import generator


class Desk:
    """Runs the attempt, the right operation, and those with a typical mistake, on the same ``cases``."""

    def __init__(self, lesson):
        self.lesson, self.op = lesson, lesson.op
        generator.bit_generator.state = rng(0, "exercise").bit_generator.state  # the same numbers at every attempt
        self.cases = lesson.cases(lambda *inputs, **options: lesson.call(self.op, *inputs, **options))
        for array in (array for case in self.cases for array in case.arrays):
            array.flags.writeable = False  # an error at the line that writes to it

    def forward(self, op, case, dtype=np.float64):
        """(tape, output) of ``op`` on a case."""
        self.op = op
        with Tape() as tape:
            y = case.fn(*(Tensor(array.astype(dtype, copy=False), requires_grad=True) for array in case.arrays))
        return tape, y

    def entry(self, op, case):
        """The tape's only entry, or None for a case of several operations."""
        entries = self.forward(op, case)[0].entries
        return entries[0] if len(entries) == 1 else None

    def slots(self, op, case, dy=None):
        """Backward's result, by default for gradcheck's dy; None for a case of several operations."""
        if (entry := self.entry(op, case)) is None:
            return None
        if dy is None:
            dy = np.asarray(rng(0, "gradcheck").standard_normal(entry.output.shape))
        dy.flags.writeable = False
        return op.backward(entry.ctx, dy)

    def numbers(self, case):
        """The slot of each array of a case, or None unless each has exactly one."""
        entry = self.entry(self.lesson.op, case)
        if entry is None:
            return None
        found = [[j for j, x in enumerate(entry.inputs) if x is not None and x.data is a] for a in case.arrays]
        return [js[0] for js in found] if all(len(js) == 1 for js in found) else None

    def names(self, case):
        """The names of the gradients of a case's arrays: dx, or "input 0" if they have no slot of their own."""
        numbers = self.numbers(case)
        return [f"input {i}" if numbers is None else self.lesson.gradients[numbers[i]] for i in range(len(case.arrays))]

    def compare(self, op, case, i, name):
        """(error, gradcheck's report) of the gradient of input i; report None if it is right."""
        self.op = op

        def fn(x):
            y = case.fn(*(x if j == i else Tensor(array) for j, array in enumerate(case.arrays)))
            case.fn(*(Tensor(-array) for array in case.arrays))  # so that values kept outside of ctx are lost
            return y

        try:
            comparison = dataclasses.replace(compare_gradients(fn, case.arrays[i])[0], i=i)
        except MinijepaError as error:
            return 0.0, str(error)
        if comparison.error <= TOLERANCE:
            return comparison.error, None
        analytic, numeric = comparison.analytic.ravel(), comparison.numeric.ravel()
        first = int(np.argmin(np.abs(analytic - numeric) <= TOLERANCE * max(np.abs(analytic).max(), FLOOR)))
        at = ", ".join(str(int(k)) for k in np.unravel_index(first, comparison.x.shape))
        first = f"  first      {name}[{at}]: analytic {analytic[first]:.7g}, numeric {numeric[first]:.7g}"
        return comparison.error, f"{comparison.report(TOLERANCE)}\n{first}"
