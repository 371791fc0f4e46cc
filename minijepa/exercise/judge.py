"""Is an attempt right? Gradcheck decides, on every input of the lesson."""

import contextlib
import textwrap

import numpy as np

from minijepa.exercise.attempt import NotYet, load, place, told_with_line
from minijepa.exercise.desk import Desk
from minijepa.exercise.diagnosis import RIGHT, diagnosis, same

USUAL = "none of the usual mistakes. Compare it line by line with the derivation, or take the next hint."
NOT_HERE = "right on its own, but not here, where a value is used more than once. Is something kept outside of ctx?"
UNSUMMED = (
    "the sum over the rows was left to the engine, which sums over axes that were broadcast "
    "(docs/backward/broadcasting.md). On paper you need the sum: write it too."
)


def judge(lesson, path):
    """(right, text) about the attempt in the file ``path``."""
    printed, right = {}, False
    try:
        text = check(Desk(lesson), load(lesson, path, printed), path, printed)
        right = True
    except NotYet as not_yet:
        text = str(not_yet)
    prints = [f"{path}, line {line}, prints: {what}" for line, what in printed.items()]
    return right, "\n".join([*prints, text])


def check(desk, op, path, printed):
    """Check an operation on every input. Raises NotYet at the first one on which it is wrong."""
    count, largest, unsummed, at_first = 0, 0.0, {}, dict(printed)
    for number, case in enumerate(desk.cases):
        so_far = f"\n(Right on {number} input{'s' if number > 1 else ''} before this one.)" if number else ""
        reset(printed, at_first)  # keep only what is printed on the reported input, and outside of the class
        try:
            with told_with_line(path):
                slots = desk.slots(op, case)
        except NotYet as not_yet:
            here = dict(printed)
            more = leads(desk, case, str(not_yet)) + elsewhere(desk, op)
            reset(printed, here)
            raise NotYet("\n\n".join([f"{not_yet}\n{shapes(desk, case)}{so_far}", *more])) from None
        check_form(desk, op, case, slots, path)
        findings = {}
        for i, name in enumerate(desk.names(case)):
            with told_with_line(path):
                error, report = desk.compare(op, case, i, name)
            largest = max(largest, error)
            if report:
                findings[name] = report
        if findings:
            raise NotYet("\n\n".join([told(desk, case, slots, findings, path), *leads(desk, case)]) + so_far)
        for name, j, array in zip(desk.names(case), desk.numbers(case) or (), case.arrays):
            if slots[j].shape != array.shape:
                unsummed[name] = True
        count += len(case.arrays)
    check_float32(desk, op, path)
    right = f"Right: {count} gradients on {len(desk.cases)} inputs, largest error {largest:.1e}."
    return right + "\n" + textwrap.fill(f"{', '.join(unsummed)}: {UNSUMMED}", 80) if unsummed else right


def reset(printed, kept):
    printed.clear()
    printed.update(kept)


def check_form(desk, op, case, slots, path):
    """Raises NotYet unless forward gives what it did in the stub, and backward a tuple with a slot for each input."""
    if slots is None and desk.entry(desk.lesson.op, case) is None:  # several operations: nothing new
        return
    if not same(desk.forward(op, case)[1].data, desk.forward(desk.lesson.op, case)[1].data):
        raise NotYet(f"{place(path, 'forward')}: forward was changed and gives another y: restore it")
    names, at = desk.lesson.gradients, place(path, "backward")
    if not isinstance(slots, tuple) or len(slots) != len(names):
        kind = "None" if slots is None else type(slots).__name__
        found = f"a tuple of {len(slots)}" if isinstance(slots, tuple) else kind
        wanted = f"({', '.join(names)}{',' * (len(names) == 1)})"
        raise NotYet(f"{at}: backward must return a tuple with a slot for each input, {wanted}, and returned {found}")
    if all(slot is None for slot in slots):
        raise NotYet(f"{at}: backward is still empty: {', '.join(names)} {'is' if len(names) == 1 else 'are'} None")


def check_float32(desk, op, path):
    """Raises NotYet if float32 becomes float64."""
    try:
        with told_with_line(path):
            tape, y = desk.forward(op, desk.cases[0], np.float32)
            tape.backward(y, np.ones(y.shape, np.float32))
    except NotYet as not_yet:
        raise NotYet(
            f"The numbers are right, but float32 must stay float32: {not_yet}. (np.zeros makes float64 unless it is "
            "told: np.zeros(shape, dy.dtype).)"
        ) from None


def told(desk, case, slots, findings, path):
    """The report on an input with wrong gradients: which ones, gradcheck's report, and what is missing."""
    names, numbers = desk.names(case), desk.numbers(case)
    width = max(map(len, names))
    lines = [f"{path}, on input {case.name!r}:"]
    lines += [f"  {name:<{width}}  {'not yet' if name in findings else 'right'}" for name in names]
    reasons, shown = {}, None
    for name in findings:
        number = None if slots is None or numbers is None else numbers[names.index(name)]
        reason = NOT_HERE if number is None else diagnosis(desk, case, slots, number) or USUAL
        reasons.setdefault(reason, []).append(name)  # a reason shared by several gradients is given once
        if shown is None and (number is None or slots[number] is not None):
            shown = f"\n{name}: {findings[name]}"
    lines += [shown] if shown else []
    for reason, of in reasons.items():
        lines += ["", textwrap.fill(f"{', '.join(of)}: {reason}", 80)]
    return "\n".join(lines)


def shapes(desk, case):
    """The input, and the shapes there."""
    y = desk.forward(desk.lesson.op, case)[1]
    inputs = [f"{name.removeprefix('d')} {array.shape}" for name, array in zip(desk.names(case), case.arrays)]
    return f"(on input {case.name!r}: {', '.join(inputs)}, dy {y.shape})"


def leads(desk, case, text=""):
    """Common causes on such an input, and of errors about shapes."""
    plain, here = (max(array.ndim for array in c.arrays) for c in (desk.cases[0], case))
    found, rows = [], "(..., " in desk.lesson.op.shapes
    if rows and here > plain:
        found.append(
            "There are more axes here: those in front of the last one are rows, all alike. axis=-1 is the last axis, "
            "however many there are, and a.reshape(-1, a.shape[-1]) is a matrix of all rows."
        )
    elif rows and here < plain:
        found.append(
            "There is a single row here, without an axis for rows. axis=-1 is its axis too, and "
            "a.reshape(-1, a.shape[-1]) a matrix of one row."
        )
    elif "broadcast" in text and "einstein" not in text:
        found.append("A sum or a mean over an axis takes the axis away; keepdims=True keeps it, with length 1.")
    elif "matmul" in text:
        found.append("In a @ b, a's last length must be b's first. Which transposes give the gradient its shape?")
    return [textwrap.fill(lead, 80) for lead in found]


def elsewhere(desk, op):
    """For an attempt that raises an error: what is wrong with it on an input on which it runs, if known."""
    for case in desk.cases:
        with contextlib.suppress(Exception, SystemExit):
            slots = desk.slots(op, case)
            for name, number in zip(desk.names(case), desk.numbers(case)):
                reason = None if slots[number] is None else diagnosis(desk, case, slots, number)
                if reason not in (None, RIGHT):
                    return [textwrap.fill(f"On input {case.name!r} it runs, and there {name}: {reason}", 80)]
    return []
