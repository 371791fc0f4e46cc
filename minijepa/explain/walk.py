"""A tiny network with a recorded walk back: what each entry is given, what it returns, and what is added."""

import inspect
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from minijepa import ops
from minijepa.autograd import Tape, Tensor
from minijepa.backend import rng
from minijepa.explain.operation import function_of, input_names
from minijepa.explain.step import tiny_step
from minijepa.gradcheck.cases import cases_of
from minijepa.gradcheck.check import numeric_gradient, step_of
from minijepa.gradcheck.watch import WatchingTape
from minijepa.nn import Module


@dataclass
class Network:
    """``forward()`` recomputes the loss from the same leaves, and fills ``named``, {tensor: its name}."""

    title: str
    program: str
    forward: callable
    named: dict
    used_twice: Tensor = None  # forward(nudges=(a, b)) adds a only for its first use, b only for its second
    unnamed: str = ""  # the name for constants without one


def network_of(op):
    """The first case of ``op``, in a network that uses x twice: in the operation, and in a sum next to it.

    c is the random dy of the live check, so that the gradients of all other inputs are those that it prints.
    """
    case = cases_of(op)[0]
    names = input_names(function_of(op), len(case.arrays))
    first, *others = (Tensor(a.copy(), requires_grad=True) for a in case.arrays)
    start = Tensor(first.data / 2, requires_grad=True)
    y = case.fn(first, *others).data
    c = Tensor(rng(0, "gradcheck").standard_normal(y.shape))
    named = {start: "start", c: "c", **dict(zip(others, names[1:]))}
    network = Network(op, _program(op, names, case), None, named)

    def forward(nudges=None):
        x = start * 2
        to_op, to_sum = (x, x) if nudges is None else (x + nudges[0], x + nudges[1])
        y = case.fn(to_op, *others)
        z = c * y
        s, t = z.sum(), to_sum.sum()
        loss = s + t
        named.update(zip((x, y, z, s, t, loss), (names[0], "y", "z", "s", "t", "L")))
        network.used_twice = x
        return loss

    network.forward = forward
    return network


def _program(op, names, case):
    x, options = names[0], len(inspect.signature(getattr(ops, op)).parameters) > len(names)
    arguments = f"[{', '.join(names)}]" if op == "concat" else ", ".join(names)
    lines = [(f"{x} = start * 2", ""), (f"y = ops.{op}({arguments}{', …' * options})", case.name),
             ("z = c * y", "c: random numbers"), (f"s, t = z.sum(), {x}.sum()", f"{x} is used again"),
             ("L = s + t", "")]  # fmt: skip
    width = max(len(code) for code, _ in lines) + 2
    return "\n".join(f"{code:<{width}}# {why}" if why else code for code, why in lines)


def network_of_step():
    """The training step of ``explain --step``, up to its loss."""
    model, images, masks = tiny_step()
    targets = model.targets(images, masks)
    named = {p: name for name, p in model.flat.parameters.items()} | {targets: "targets"}

    def forward():
        loss = model.distance(model.predictions(images, masks), targets)
        named[loss] = "loss"
        return loss

    program = (
        "targets = model.targets(images, masks)  # no tape: no gradient can flow\n"
        "loss = model.distance(model.predictions(images, masks), targets)"
    )
    return Network("A step of I-JEPA", program, forward, named, unnamed="pixels")


class RecordingTape(WatchingTape):
    """Records the engine's work: ``recorded`` entries with their ``modules``, and the ``walk`` back.

    ``walk``: for each entry visited, {"entry": its number, "dy": the gradient that came in, "slots": what goes to each
    of its inputs}. A slot is None or {"returned": by backward; "dx": the same, summed over broadcast axes; "total": the
    input's gradient after all uses walked so far}. ``totals``: {tensor: the sum of its gradients}.
    """

    def __init__(self):
        super().__init__()
        self.recorded, self.modules, self.walk, self.totals = [], [], [], {}

    def record(self, entry):
        super().record(entry)
        self.recorded.append(entry)
        self.modules.append(_running_module())

    def _start(self, loss, cotangent):
        gradient = super()._start(loss, cotangent)
        self.totals[loss] = gradient.copy()
        return gradient

    def _gradients(self, entry, dy):
        body, given = entry.body, []

        def backward(ctx, dy):
            given.append(body.backward(ctx, dy))
            return given[0]

        entry.body = SimpleNamespace(backward=backward)
        visit = {"entry": len(self.entries), "dy": dy.copy(), "slots": []}
        gradients = super()._gradients(entry, dy)
        for x, returned, dx in zip(entry.inputs, given[0], gradients):
            if dx is not None:
                self.totals[x] = self.totals[x] + dx if x in self.totals else dx.copy()
                visit["slots"].append({"returned": returned.copy(), "dx": dx.copy(), "total": self.totals[x].copy()})
            else:
                visit["slots"].append(None)
        self.walk.append(visit)
        return gradients


def _running_module():
    """The dotted name of the part of a network, such as a block, whose forward is running; "" outside of modules."""
    owners, frame = [], sys._getframe(2)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Module) and owner not in owners[-1:]:
            owners.append(owner)
        frame = frame.f_back
    if not owners:
        return ""
    name, parameter = next(owners[-2:][0].named_parameters())
    return parameter.name.removesuffix(name).rstrip(".")


class _NudgedTape(Tape):
    """Adds ``nudge`` to the output of entry ``number``, for differences of values inside a network."""

    def __init__(self, number, nudge):
        super().__init__()
        self.number, self.nudge = number, nudge

    def record(self, entry):
        if len(self.entries) == self.number:
            entry.output.data = entry.output.data + self.nudge
        super().record(entry)


def numeric_of(network, tensor, number, entries=None):
    """dL/d(tensor) by finite differences of the whole network. ``number``: of its entry; None for a leaf."""
    if number is None:
        return numeric_gradient(lambda: network.forward().data, tensor.data, entries=entries)
    nudge = np.zeros(tensor.shape)

    def nudged():
        with _NudgedTape(number, nudge):
            return network.forward().data

    return numeric_gradient(nudged, nudge, h=step_of(tensor.data), entries=entries)


def numeric_of_each_use(network):
    """dL/dx through only the first use of the value that is used twice, and through only the second."""
    x = network.used_twice
    nudges = np.zeros(x.shape), np.zeros(x.shape)
    return [numeric_gradient(lambda: network.forward(nudges).data, nudge, h=step_of(x.data)) for nudge in nudges]
