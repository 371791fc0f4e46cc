"""An operation explained: its formula, its derivation, its code, and a live check of its gradient.

Nothing is stored twice: the text is the docstrings, the code is the source, and the example is the first case in
``minijepa/gradcheck/cases.py``. So a changed operation is shown with its changes.
"""

import dis
import inspect
import textwrap
from pathlib import Path

import numpy as np

from minijepa import ops
from minijepa.autograd import Tape, Tensor
from minijepa.cli import docstring
from minijepa.errors import MinijepaError
from minijepa.explain.columns import fit_code, fit_text
from minijepa.gradcheck.cases import cases_of
from minijepa.gradcheck.check import TOLERANCE, compare_gradients

MOST_ROWS = 12  # of a table of gradients

PAGES = {  # docs/backward/: the page that derives these operations
    "attention": "attention",
    "broadcasting": "add sub mul div expand sum mean",
    "cross_entropy": "cross_entropy l2_loss smooth_l1_loss",
    "gelu": "gelu",
    "layer_norm": "layer_norm",
    "linear": "linear matmul",
    "rest": "neg exp log sqrt tanh power getitem reshape transpose concat max",
    "rows": "rows",
    "softmax": "softmax",
}


def page_of(op):
    """The page of docs/backward/ for further reading."""
    return next(page for page, ops_of_it in PAGES.items() if op in ops_of_it.split())


def function_of(op):
    """The Function of ``ops.op``: the class that the first case of ``op`` records."""
    case = cases_of(op)[0]
    with Tape() as tape:
        case.fn(*(Tensor(a, requires_grad=True) for a in case.arrays))
    return tape.entries[-1].op


def input_names(function, count=0):
    """Forward's names of a Function's inputs: "x", "w", "b"; numbered, ``count`` of them, if it takes any number."""
    parameters = list(inspect.signature(function.forward).parameters.values())[1:]  # without ctx
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return names or [f"x{i}" for i in range(count)]


def formula_and_code(op, width):
    """The user's docstring, the derivation, and the source of forward, backward and what they call."""
    user, function = getattr(ops, op), function_of(op)
    source = Path(inspect.getsourcefile(function))
    code = [function.forward, function.backward, *helpers_of(function)]
    return "\n".join([
        f"ops.{op}{inspect.signature(user)}",
        textwrap.indent(fit_text(docstring(user), width - 4), "    "),
        _title(f"{function.__name__}: {function.shapes}"),
        fit_text(docstring(function), width),
        _title(f"The code, {'/'.join(source.parts[-3:])}"),
        "\n\n".join(fit_code(source_of(piece), width) for piece in code),
    ])  # fmt: skip


def source_of(function):
    return textwrap.dedent(inspect.getsource(function)).rstrip()


def helpers_of(function):
    """The functions of ``minijepa.ops`` that forward and backward call, directly or indirectly."""
    found, todo = [], [function.forward, function.backward]
    while todo:
        caller = todo.pop(0)
        for name in _names_in(caller.__code__):
            helper = caller.__globals__.get(name)
            if inspect.isfunction(helper) and helper.__module__.startswith("minijepa.ops") and helper not in found:
                found.append(helper)
                todo.append(helper)
    return found


def _names_in(code):
    """The global names that a piece of code uses, also inside its generator expressions."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"]
    return names + [name for c in code.co_consts if inspect.iscode(c) for name in _names_in(c)]


def live_check(case, names, width):
    """(text, passed): the gradients of a case, analytic and numeric side by side, and the verdict."""
    lines = [_title(f"Live check: {case.name}; in float64, with a random dy")]
    try:
        comparisons = compare_gradients(case.fn, *case.arrays)
    except MinijepaError as error:  # a backward of the wrong shape, an input written into
        return "\n".join([*lines, fit_text(str(error), width), "FAILED"]), False

    y = case.fn(*(Tensor(a) for a in case.arrays)).data
    for name, array in [*zip(names, case.arrays), ("y", y), ("dy", comparisons[0].cotangent)]:
        lines.append(_array(name, array, width))
    for name, comparison in zip(names, comparisons):
        lines += ["", _gradients(name, comparison)]
    worst = max(comparisons, key=lambda comparison: comparison.error)
    passed = worst.error <= TOLERANCE
    if not passed:
        lines += ["", fit_code(worst.report(TOLERANCE), width)]
    verdict = "passed" if passed else "FAILED"
    lines += [
        "", "error = max|analytic − numeric| / max|analytic|",
        f"      = {worst.error:.1e}, tolerance {TOLERANCE:.0e}: {verdict}",
    ]  # fmt: skip
    return "\n".join(lines), passed


def _gradients(name, comparison):
    """A line for each element: where, its value, both gradients and their difference."""
    analytic, numeric = comparison.analytic.ravel(), comparison.numeric.ravel()
    heads = ("", name, "analytic", "numeric", "difference")
    lines = ["{:<14}{:>10}  {:>16}  {:>16}  {:>11}".format(*heads)]
    for position in range(min(len(numeric), MOST_ROWS)):
        index = [str(int(k)) for k in np.unravel_index(position, comparison.x.shape)]
        where = f"d{name}[{', '.join(index)}]" if index else f"d{name}"
        a, n = analytic[position], numeric[position]
        lines.append(f"{where:<14}{comparison.x.flat[position]:>10.4f}  {a:>16.10f}  {n:>16.10f}  {a - n:>11.1e}")
    if len(numeric) > MOST_ROWS:
        lines.append(f"and {len(numeric) - MOST_ROWS} more elements of {name}, checked likewise")
    return "\n".join(lines)


def _array(name, array, width):
    """``name (2, 3) = [[...]]`` with one row per line."""
    head = f"{name} {array.shape} = "
    return head + np.array2string(array, precision=4, suppress_small=True, prefix=head, max_line_width=width)


def _title(text):
    return f"\n{text}\n{'-' * len(text)}"
