"""A hundred random programs under gradcheck: the engine adds up, un-broadcasts and orders whatever is put together.

A program grows a pool of values from two inputs. A step takes values that are there already, so nodes are used again,
at times twice by one operation. All choices are made at the first run; later ones, for the differences, repeat them.
"""

import numpy as np
import pytest

from minijepa import Tape, Tensor, gradcheck, ops

PROGRAMS = 100
STEPS = 7


class Program:
    """fn(x, y) -> scalar, of operations drawn from ``seed``."""

    def __init__(self, seed):
        self.seed, self.decisions = seed, None

    def __call__(self, *inputs):
        self.draw, first = np.random.default_rng(self.seed), self.decisions is None
        self.decisions = [] if first else self.decisions
        self.next = None if first else iter(self.decisions)
        pool = list(inputs)
        for _ in range(STEPS):
            x = self.one_of([pool[-1], *pool])
            steps = [self.binary] if not x.ndim else [self.binary, self.unary, self.over_rows, self.reduced, self.moved]
            y = self.one_of(steps)(x, self.one_of(pool))
            y = y.mean(axis=0) if y.size > 50 else y
            pool.append(y.tanh() if self.decided(lambda y=y: abs(y.data).max(initial=0) > 2) else y)
        total = Tensor(np.float64(0))
        for x in pool:
            total = total + (x * x).sum()
        return total

    def one_of(self, things):
        return things[self.draw.integers(len(things))]

    def decided(self, question):
        """What ``question()`` answers at the first run: on numbers, which differences change a little."""
        if self.next is not None:
            return next(self.next)
        self.decisions.append(bool(question()))
        return self.decisions[-1]

    def axes(self, ndim):
        """An axis, a tuple of axes, some of them negative, or None for all."""
        some = self.draw.permutation(ndim)[: self.draw.integers(1, ndim + 1)]
        some = tuple(int(a) - ndim * int(self.draw.integers(2)) for a in some)
        return self.one_of([None, some, some[0]])

    def unary(self, x, _):
        return self.one_of([
            ops.tanh, ops.neg, ops.gelu, lambda x: ops.exp(x * 0.3), lambda x: ops.sqrt(x * x + 0.5),
            lambda x: ops.log(x * x + 1.0), lambda x: x**3, lambda x: 1.0 / (x * x + 1.0), lambda x: 2.0 - x,
        ])(x)  # fmt: skip

    def over_rows(self, x, _):
        n = x.shape[-1]
        w, b = self.draw.standard_normal((2, n)), self.draw.standard_normal(n)
        first = x.reshape(-1, n)[:1].sum(axis=0)  # a weight or bias that is computed from x
        return self.one_of([
            ops.softmax, lambda x: ops.layer_norm(x, first + 1.0, b, eps=0.1), lambda x: ops.gelu(x, first),
            lambda x: ops.linear(x, w, b[:1].repeat(2)), lambda x: x @ w.T, lambda x: x @ first,
        ])(x)  # fmt: skip

    def reduced(self, x, _):
        axis, keepdims = self.axes(x.ndim), bool(self.draw.integers(2))
        op = self.one_of([ops.sum, ops.mean, ops.max, ops.max])
        if op is ops.max:
            x = self.one_of([x, ops.concat([x, x], axis=axis[0] if isinstance(axis, tuple) else axis or 0)])  # ties
            if not self.decided(lambda: far_apart(x.data, axis)):
                op = ops.mean
        return op(x, axis=axis, keepdims=keepdims)

    def moved(self, x, _):
        index = tuple(self.one_of([slice(None, None, -1), 0, None, slice(0, 1), slice(1, None)]) for _ in range(x.ndim))
        rows = self.draw.integers(0, max(1, len(x)), self.draw.integers(1, 5) if len(x) else 0)  # some several times
        mask = self.draw.random(x.shape[: self.draw.integers(1, x.ndim + 1)]) < 0.7
        axes = tuple(int(a) for a in self.draw.permutation(x.ndim))
        return self.one_of([
            lambda x: x.transpose(axes), lambda x: x.reshape(-1), lambda x: ops.concat([x, x * x, 2.0 - x], axes[0]),
            lambda x: x[rows], lambda x: x[index], lambda x: x[mask], lambda x: x.expand(2, *x.shape),
        ])(x)  # fmt: skip

    def binary(self, x, y):
        """Of x and y where they fit, else of x and a scalar made of y; or of x and itself."""
        try:
            np.broadcast_shapes(x.shape, y.shape)
        except ValueError:
            y = y.sum()
        a = self.one_of([x, y])
        product = [lambda x, y: ops.matmul(x, x.T if x.ndim < 3 else x.transpose(0, 2, 1))] if 0 < x.ndim < 4 else []
        return self.one_of([ops.add, ops.sub, ops.mul, lambda x, y: x / (y * y + 1.0), *product])(x, a)


def far_apart(x, axis):
    """Whether each maximum over ``axis`` stays one under a difference: equal to others, or well above them."""
    largest = x.max(axis=axis, keepdims=True) if x.size else x
    return bool(x.size) and (largest - np.where(x == largest, -np.inf, x).max(axis=axis, keepdims=True)).min() > 0.05


def inputs_of(seed):
    draw = np.random.default_rng((1, seed))
    return [draw.standard_normal(draw.integers(1, 4, draw.integers(0, 4))) for _ in range(2)]


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_the_gradient_of_a_random_program(seed):
    assert gradcheck(Program(seed), *inputs_of(seed), seed=seed) < 1e-6


def test_the_programs_use_every_operation_nodes_again_and_ties():
    counts, again, ties = {}, 0, 0
    for seed in range(PROGRAMS):
        with Tape() as tape:
            Program(seed)(*(Tensor(a, requires_grad=True) for a in inputs_of(seed)))
        for entry in tape.entries:
            name = entry.op.op_name
            counts[name] = counts.get(name, 0) + 1
            given = [x for x in entry.inputs if x is not None]
            again += len(set(given)) < len(given)
            if name == "max":
                x, y = entry.ctx.saved
                ties += int((x == y).sum() > y.size)
    packed = {"attention", "cross_entropy", "l2_loss", "smooth_l1_loss"}  # which take packings, labels, a loss's pair
    wanted = {op for op in ops.__all__ if op.islower()} - packed - {"getitem"} | {"slice"}
    assert {op for op in wanted if counts.get(op, 0) < 5} == set()
    assert again > PROGRAMS and ties > 10
