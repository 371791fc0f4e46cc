"""The tape in a browser: ``--html FILE`` writes one self-contained page that walks a tape forward and backward.

The engine itself is recorded (``walk.py``), so the page computes nothing: it shows the numbers that backward made.
"""

import inspect
import json
from importlib import resources
from pathlib import Path

import numpy as np

from minijepa import ops
from minijepa.cli import docstring
from minijepa.errors import ConfigError, DtypeError, ShapeError, TapeError
from minijepa.explain.columns import fit_text
from minijepa.explain.lines import gradient_lines
from minijepa.explain.operation import helpers_of, input_names, page_of, source_of
from minijepa.explain.step import saved_names
from minijepa.explain.walk import RecordingTape, network_of, network_of_step, numeric_of, numeric_of_each_use
from minijepa.files import open_plain, replaced
from minijepa.gradcheck.check import TOLERANCE, gradient_error

MARK = '<meta name="generator" content="minijepa.explain">'  # files with it may be overwritten
DOC_WIDTH = 84
NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}  # of numbers that JSON does not have, for JavaScript


def write_page(file, op=None):
    """Write the page of an operation, or of a training step; return (a line about it, whether all gradients are right).

    An existing file is replaced if it is such a page, or empty; otherwise ConfigError. If the engine refuses what
    backward returns, there is no walk to show: the line is the error.
    """
    file = Path(file)
    if file.exists():
        with open_plain(file, errors="replace") as there:
            head = there.read(1000)
        if head and MARK not in head:
            raise ConfigError(f"{file} exists and is not a page of this command: choose another name, or remove it")
    network = network_of_step() if op is None else network_of(op)
    try:
        data, passed = recorded(network)
    except (ShapeError, DtypeError, TapeError) as error:
        return f"no page: {error}", False
    template = (resources.files("minijepa.explain") / "page.html").read_text(encoding="utf-8")
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    page = template.replace("{MARK}", MARK).replace("{TITLE}", data["title"]).replace("{TAPE}", text)
    with replaced(file, "w", encoding="utf-8") as out:
        out.write(page)
    return f"{file}: {data['verdict']}. Open it in a browser; the arrow keys walk", passed


def recorded(network):
    """(data, passed): everything that the page shows, for JSON, and whether analytic and numeric gradients agree."""
    with RecordingTape() as tape:
        loss = network.forward()
    lines, graph = tape.lines(), _Graph(network, tape)
    tape.backward(loss)
    walk = [graph.visit(visit) for visit in tape.walk]
    numeric, worst = graph.numeric(tape.totals, every=network.used_twice is not None)
    data = {
        "title": network.title,
        "program": network.program,
        "values": graph.values,
        "entries": [
            dict(entry, group=group, saved=saved_names(e.op), bytes=line[3])
            for entry, group, e, line in zip(graph.entries, tape.modules, tape.recorded, lines)
        ],
        "walk": walk,
        "numeric": numeric,
        "twice": network.named.get(network.used_twice),
        "uses": [graph.array(a) for a in numeric_of_each_use(network)] if network.used_twice is not None else [],
        "ops": {e.op.op_name: _lesson(e) for e in tape.recorded},
        "verdict": f"largest relative difference {worst:.0e}, tolerance {TOLERANCE:.0e}: "
        + ("passed" if worst <= TOLERANCE else "FAILED"),
        "arrays": graph.arrays,
    }
    return data, worst <= TOLERANCE


class _Graph:
    """The tape as numbers: ``values`` and ``entries`` name each other by position, and ``arrays`` are stored once."""

    def __init__(self, network, tape):
        self.network, self.arrays, self.values = network, [], []
        self._known, self._places = {}, {}
        made = {entry.output: number for number, entry in enumerate(tape.recorded)}
        self.tensors = list(dict.fromkeys(x for e in tape.recorded for x in (*e.inputs, e.output) if x is not None))
        self.made = [made.get(x) for x in self.tensors]
        for place, (x, entry) in enumerate(zip(self.tensors, self.made)):
            self._places[x] = place
            kind = "value" if entry is not None else "leaf" if x.requires_grad else "constant"
            self.values.append(dict(name=self._name(x, entry), kind=kind, made=entry, array=self.array(x.data)))
        self.entries = [
            dict(op=e.op.op_name, inputs=[self._places.get(x) for x in e.inputs], output=self._places[e.output])
            for e in tape.recorded
        ]

    def _name(self, x, entry):
        if x in self.network.named:
            return self.network.named[x]
        if entry is not None:
            return f"#{entry}"
        return f"{x.item():g}" if x.size == 1 else self.network.unnamed

    def array(self, array):
        """[shape, number of its elements' list in ``arrays``]"""
        key = array.tobytes()
        if key not in self._known:
            self._known[key] = len(self.arrays)
            self.arrays.append([x if np.isfinite(x) else NAMES[str(x)] for x in array.reshape(-1).tolist()])
        return [list(array.shape), self._known[key]]

    def visit(self, visit):
        slots = [s and {name: self.array(gradient) for name, gradient in s.items()} for s in visit["slots"]]
        return dict(visit, dy=self.array(visit["dy"]), slots=slots)

    def numeric(self, totals, every):
        """({place: [positions, analytic, numeric]}, worst error): of every element, or only of the largest."""
        found, worst = {}, 0.0
        for place, (x, entry) in enumerate(zip(self.tensors, self.made)):
            if x in totals:
                flat = totals[x].reshape(-1)
                at = np.arange(flat.size) if every else [int(np.abs(flat).argmax())] if flat.size else []
                numeric = numeric_of(self.network, x, entry, at)
                worst = max(worst, gradient_error(flat[at], numeric))
                found[place] = [list(map(int, at)), self.array(flat[at])[1], self.array(numeric)[1]]
        return found, worst


def _lesson(entry):
    """The page's text on an operation: its derivation, and its code with the lines of each gradient."""
    op, inputs = entry.op, len(entry.inputs)
    pieces = [op.forward, op.backward, *helpers_of(op)]
    module = inspect.getsourcefile(op).replace("\\", "/").rpartition("/minijepa/")[2]
    return dict(
        name=op.__name__,
        shapes=op.shapes,
        names=input_names(op, inputs),
        derivation=fit_text(docstring(op), DOC_WIDTH),
        file=f"minijepa/{module}",
        code=[dict(title=p.__name__, first=inspect.getsourcelines(p)[1], text=source_of(p)) for p in pieces],
        lines=gradient_lines(op, inputs),
        page=page_of(op.op_name) if hasattr(ops, op.op_name) else "rest",  # getitem's is called Slice
    )
