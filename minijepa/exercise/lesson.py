"""An exercise, and what is made from it: the stub, the solution's code, code with typical mistakes."""

import ast
import inspect
import sys
from dataclasses import dataclass

from minijepa.explain.operation import input_names, source_of

INTRO = '''"""Exercise {self.name}: {self.asks}.

Forward is given, backward is yours. The page: {self.page}

    python -m minijepa.exercise {self.name}              checks this file, as often as you like
    python -m minijepa.exercise {self.name} --hint       the next step of the derivation
    python -m minijepa.exercise {self.name} --solution   the derivation, and the code
"""
'''


@dataclass(frozen=True)
class Lesson:
    """An exercise. Its module is the solved student's file; the stub is made from it.

    ``op``: the Function, forward and right backward. ``page``: its derivation. ``asks``: a line for the list.
    ``cases(fn)``: the inputs, as gradcheck takes them, for ``fn(*tensors, **options)``; the first has lengths that
    all differ. ``call(op, *tensors, **options)``: how an operation like ``op`` is called. ``hints``: the derivation in
    steps. ``mistakes``: {(old, new): message} for an attempt whose gradient is that of a backward with ``new`` in place
    of ``old``, the most likely first. ``twin``: the package's own operation, the name of an ``ops`` function.
    """

    op: type
    page: str
    asks: str
    cases: callable
    hints: tuple
    mistakes: dict
    call: callable = lambda op, *inputs, **options: op.apply(*inputs, **options)
    twin: str | None = None

    @property
    def module(self):
        return sys.modules[self.op.__module__]

    @property
    def name(self):
        return self.module.__name__.rpartition(".")[2]

    @property
    def file(self):
        """The name of the student's file."""
        return f"exercise_{self.name}.py"

    @property
    def gradients(self):
        """The names of backward's results: "dx", "dw"."""
        return [f"d{name}" for name in input_names(self.op)]

    def backward_source(self, *mistakes):
        """The source of the right backward, changed by mistakes; None if they exclude each other."""
        source = source_of(self.op.backward)
        for old, new in mistakes:
            if old not in source:
                return None
            source = source.replace(old, new)
        return source

    def variant(self, *mistakes):
        """The operation with mistakes in its backward, or None if they exclude each other."""
        if (source := self.backward_source(*mistakes)) is None:
            return None
        namespace = {}
        exec(compile(source, "<mistake>", "exec"), self.op.forward.__globals__, namespace)
        return type(self.op.__name__, (self.op,), {"backward": namespace["backward"]})

    def stub(self):
        """The student's file: the lesson's module down to its class, without our imports, the backward emptied."""
        source = inspect.getsource(self.module)
        tree = ast.parse(source)
        backward = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "backward")
        *body, last = backward.body
        lines = source.splitlines()
        head = lines[tree.body[1].lineno - 1 : body[0].lineno - 1]  # from the first import on
        head = [line.replace("minijepa.autograd", "minijepa") for line in head]
        head = [line for line in head if not line.startswith("from minijepa.")]
        head = head if "import numpy as np" in head else ["import numpy as np", "", *head]
        given = [lines[node.lineno - 1] for node in body if "ctx." in ast.get_source_segment(source, node)]
        yours = [f"        {dx} = None  # yours to write; of {dx[1:]}'s shape" for dx in self.gradients]
        return "\n".join([INTRO.format(self=self), *head, *given, *yours, lines[last.lineno - 1], ""])
