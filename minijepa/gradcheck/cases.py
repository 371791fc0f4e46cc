"""Inputs that tend to break operations: broadcast, non-contiguous, repeated, of length 1, very small and very large.

``CASES[op]`` lists the cases of ``ops.op``; the first one is small and plain: ``minijepa.explain`` uses it as its
example. A new operation needs an entry here; a test checks that.
"""

from typing import NamedTuple

import numpy as np

from minijepa import ops
from minijepa.backend import device_of, to_device
from minijepa.cli import suggestion
from minijepa.errors import ConfigError
from minijepa.gradcheck.draws import backwards, distinct, generator, normal, positive, signed, strided, transposed


class Case(NamedTuple):
    name: str
    fn: callable  # takes a Tensor for each array
    arrays: tuple


def case(name, fn, *arrays):
    return Case(name, fn, arrays)


def cases_of(op):
    """The cases of an operation. Raises ConfigError, suggesting similar names, for one that does not exist."""
    if op in CASES:
        return CASES[op]
    raise ConfigError(f"unknown operation {op!r}: {suggestion(op, sorted(CASES))}")


def beside(array, x):
    """A constant of a case, in the dtype and on the device of the Tensor ``x``."""
    return to_device(array.astype(x.dtype), device_of(x.data))


# --------------------------------------------------------------------------------------------------- families of cases


def unary(fn, draw=normal):
    """For an operation on (..., n): shapes, memory layouts and scales."""
    return [
        case("(2, 3)", fn, draw(2, 3)),
        case("one row (5,)", fn, draw(5)),
        case("three axes", fn, draw(2, 3, 4)),
        case("lengths 1 (1, 1)", fn, draw(1, 1)),
        case("transposed", fn, transposed(draw(3, 4))),
        case("strided", fn, strided(draw(3, 4))),
        case("negative strides", fn, backwards(draw(3, 4))),
        case("scale 1e-2", fn, 1e-2 * draw(3, 4)),
        case("scale 1e2", fn, 1e2 * draw(3, 4)),
        case("of a value used twice", lambda x: fn(x * x) + x * x, draw(2, 3)),
    ]


def binary(fn, draw=normal):
    """For an element-by-element operation on two inputs: every way to broadcast."""
    a = np.array([[0.5, -1.0, 2.0]])
    return [
        case("(2, 3), (2, 3)", fn, draw(2, 3), draw(2, 3)),
        case("row to matrix", fn, draw(3, 4), draw(4)),
        case("matrix to row", fn, draw(4), draw(3, 4)),
        case("column to matrix", fn, draw(3, 4), draw(3, 1)),
        case("column to row", fn, draw(3, 1), draw(1, 4)),
        case("scalar to matrix", fn, draw(3, 4), draw()),
        case("two scalars", fn, draw(), draw()),
        case("new axes", fn, draw(2, 3, 4), draw(4)),
        case("new and stretched", fn, draw(4, 1), draw(2, 3, 1, 5)),
        case("lengths 1", fn, draw(1, 1), draw(1)),
        case("number on the right", lambda x: fn(x, 3.0), draw(2, 3)),
        case("number on the left", lambda x: fn(3.0, x), draw(2, 3)),
        case("array on the left", lambda x: fn(beside(a, x), x), draw(2, 3)),
        case("same input twice", lambda x: fn(x, x), draw(2, 3)),
        case("transposed, strided", fn, transposed(draw(3, 4)), strided(draw(3, 4))),
        case("negative strides", fn, backwards(draw(3, 4)), backwards(draw(4))),
        case("scale 1e-2", fn, 1e-2 * draw(3, 4), 1e-2 * draw(3, 4)),
        case("scale 1e2", fn, 1e2 * draw(3, 4), 1e2 * draw(3, 4)),
    ]


def reduction(fn, draw=normal):
    """For an operation fn(x, axis, keepdims)."""

    def over(axis, keepdims=False):
        return lambda x: fn(x, axis=axis, keepdims=keepdims)

    return [
        case("axis 0 of (2, 3)", over(0), draw(2, 3)),
        case("all axes", fn, draw(3, 4)),
        case("all axes, kept", over(None, True), draw(3, 4)),
        case("last axis", over(-1), draw(2, 3, 4)),
        case("middle axis, kept", over(1, True), draw(2, 3, 4)),
        case("two axes", over((0, 2)), draw(2, 3, 4)),
        case("two axes, negative", over((-1, -3)), draw(2, 3, 4)),
        case("two axes, kept", over((-1, 0), True), draw(2, 3, 4)),
        case("all axes, named", over((0, 1)), draw(2, 3)),
        case("axis of length 1", over(1), draw(3, 1)),
        case("beside length 1", over(0), draw(3, 1)),
        case("scalar", fn, draw()),
        case("transposed", over(0), transposed(draw(3, 4))),
        case("strided", over(1), strided(draw(3, 4))),
        case("negative strides", over(1), backwards(draw(3, 4))),
        case("scale 1e-2", over(1), 1e-2 * draw(3, 4)),
        case("scale 1e2", over(1), 1e2 * draw(3, 4)),
        case("of a value used twice", lambda x: fn(x * x, axis=1, keepdims=True) + x * x, draw(2, 3)),
    ]


def linear_cases(fn=ops.linear):
    return [
        case("(2, 3), 2 outputs", fn, normal(2, 3), normal(2, 3), normal(2)),
        case("no bias", fn, normal(4, 3), normal(2, 3)),
        case("square weight", fn, normal(2, 3), normal(3, 3), normal(3)),
        case("three axes", fn, normal(2, 3, 4), normal(5, 4), normal(5)),
        case("three axes, no bias", fn, normal(2, 3, 4), normal(5, 4)),
        case("four axes", fn, normal(2, 1, 3, 4), normal(2, 4), normal(2)),
        case("one row (4,)", fn, normal(4), normal(2, 4), normal(2)),
        case("lengths 1", fn, normal(1, 1), normal(1, 1), normal(1)),
        case("one layer twice", lambda x, w, b: fn(fn(x, w, b), w, b), normal(2, 3), normal(3, 3), normal(3)),
        case("transposed, strided", fn, transposed(normal(3, 4)), transposed(normal(2, 4)), strided(normal(2))),
        case("three axes transposed", fn, transposed(normal(2, 3, 4)), strided(normal(2, 4)), normal(2)),
        case("negative strides", fn, backwards(normal(3, 4)), backwards(normal(2, 4)), backwards(normal(2))),
        case("scale 1e-2", fn, 1e-2 * normal(3, 4), 1e-2 * normal(2, 4), 1e-2 * normal(2)),
        case("scale 1e2", fn, 1e2 * normal(3, 4), 1e2 * normal(2, 4), 1e2 * normal(2)),
    ]


def layer_norm_cases(fn=ops.layer_norm):
    return [
        case("(2, 3)", fn, normal(2, 3), normal(3), normal(3)),
        case("one row (5,)", fn, normal(5), normal(5), normal(5)),
        case("three axes", fn, normal(2, 3, 4), normal(4), normal(4)),
        case("rows of length 1", fn, normal(3, 1), normal(1), normal(1)),
        case("rows of length 2", fn, normal(3, 2), normal(2), normal(2)),
        case("scale 1e-2, eps counts", fn, 1e-2 * normal(3, 5), normal(5), normal(5)),
        case("scale 1e-3, eps counts", fn, 1e-3 * normal(3, 5), normal(5), normal(5)),
        case("eps = 0.1", lambda x, w, b: fn(x, w, b, eps=0.1), normal(3, 5), normal(5), normal(5)),
        case("scale 1e2", fn, 1e2 * normal(3, 5), 1e2 * normal(5), normal(5)),
        case("mean 1e2", fn, 1e2 + normal(3, 5), normal(5), normal(5)),
        case("constant row, eps = 0.1", lambda x, w, b: fn(x, w, b, eps=0.1), np.ones((1, 4)), normal(4), normal(4)),
        case("transposed, strided", fn, transposed(normal(3, 5)), strided(normal(5)), strided(normal(5))),
        case("negative strides", fn, backwards(normal(3, 5)), backwards(normal(5)), backwards(normal(5))),
        case("residual", lambda x, w, b: x + fn(x, w, b), normal(3, 5), normal(5), normal(5)),
    ]


def rows_cases(fn=ops.rows):
    def at(*index):
        return lambda x: fn(x, np.array(index, int))

    many = generator.integers(0, 260, 30)
    return [
        case("index [1, 1, 0, 1]", at(1, 1, 0, 1), normal(3, 2)),
        case("index [2, 0, 1]", at(2, 0, 1), normal(3, 2)),
        case("one row", at(2), normal(3, 2)),
        case("no row", at(), normal(3, 2)),
        case("of a single row", at(0, 0, 0), normal(1, 4)),
        case("a vector", at(1, 3, 1), normal(4)),
        case("three axes", at(1, 0, 1), normal(2, 3, 2)),
        case("long x", at(259, 0, 7), normal(260, 1)),
        case("long x, repeated", at(5, 259, 5, 5, 0, 259), normal(260, 1)),
        case("long x, many", at(*many, *many[::2]), normal(260)),
        case("long x, no row", at(), normal(260)),
        case("long x, three axes", at(1, 0, 1), normal(257, 1, 2)),
        case("transposed", at(1, 1, 0), transposed(normal(3, 4))),
        case("strided", at(1, 1, 0), strided(normal(3, 4))),
        case("negative strides", at(1, 1, 0), backwards(normal(3, 4))),
        case("scale 1e-2", at(1, 1, 0), 1e-2 * normal(3, 4)),
        case("scale 1e2", at(1, 1, 0), 1e2 * normal(3, 4)),
    ]


def softmax_cases(fn=ops.softmax):
    return [
        *unary(fn),
        case("rows of length 1", fn, normal(3, 1)),
        case("values near 1e3", fn, 1e3 + normal(3, 4)),
    ]


def attention_of(q, k, v):
    return ops.attention(ops.concat([q, k, v], axis=1), [3, 2], 2)


def loss(fn, prediction_error):
    """For fn(predictions, targets), whose difference is drawn by ``prediction_error``."""

    def pair(*shape, scale=1.0):
        q = normal(*shape)
        return scale * (q + prediction_error(*shape)), scale * q

    p, q = pair(3, 4)
    return [
        case("(2, 3)", fn, *pair(2, 3)),
        case("count = 10", lambda p, q: fn(p, q, count=10), *pair(2, 3)),
        case("lengths 1", fn, *pair(1, 1)),
        case("fixed targets", lambda p: fn(p, beside(q, p)), p),
        case("targets of the same x", lambda x: fn(x, x * x), 3 + distinct(2, 3)),
        case("transposed, strided", fn, transposed(p), strided(q)),
        case("negative strides", fn, backwards(p), backwards(q)),
        case("scale 1e-2", fn, *pair(3, 4, scale=1e-2)),
        case("scale 1e2", fn, *pair(3, 4, scale=1e2)),
    ]


def smooth_l1_cases():
    def both_branches(*shape):
        """Errors on both sides of β = 1, none of them near it."""
        return (0.25 + distinct(*shape)) * generator.choice([-1.0, 1.0], shape)

    q = normal(3, 5)
    return [
        *loss(ops.smooth_l1_loss, both_branches),
        case("both branches", ops.smooth_l1_loss, q + both_branches(3, 5), q),
        case("all quadratic, β = 100", lambda p, q: ops.smooth_l1_loss(p, q, beta=100.0), q + both_branches(3, 5), q),
        case("all linear, β = 0.01", lambda p, q: ops.smooth_l1_loss(p, q, beta=0.01), q + both_branches(3, 5), q),
    ]


def cross_entropy_cases(fn=ops.cross_entropy):
    def of(*labels):
        return lambda x: fn(x, np.array(labels))

    return [
        case("(2, 3), labels [2, 0]", of(2, 0), normal(2, 3)),
        case("one row", of(1), normal(1, 3)),
        case("one class", of(0, 0), normal(2, 1)),
        case("equal labels", of(1, 1, 1, 1), normal(4, 3)),
        case("transposed", of(2, 0, 3), transposed(normal(3, 4))),
        case("strided", of(2, 0, 3), strided(normal(3, 4))),
        case("negative strides", of(2, 0, 3), backwards(normal(3, 4))),
        case("scale 1e-2", of(2, 0, 3), 1e-2 * normal(3, 4)),
        case("scale 1e2", of(2, 0, 3), 1e2 * normal(3, 4)),
        case("logits near 1e3", of(2, 0, 3), 1e3 + normal(3, 4)),
    ]


CASES = {
    "add": binary(ops.add),
    "attention": [
        case("one sequence, 1 head", lambda qkv: ops.attention(qkv, [2], 1), normal(2, 6)),
        case("equal lengths, 1 head", lambda qkv: ops.attention(qkv, [3, 3], 1), normal(6, 6)),
        case("equal lengths, 2 heads", lambda qkv: ops.attention(qkv, [3, 3], 2), normal(6, 12)),
        case("unequal lengths, 1 head", lambda qkv: ops.attention(qkv, [2, 4, 1], 1), normal(7, 6)),
        case("unequal lengths, 2 heads", lambda qkv: ops.attention(qkv, [1, 3, 3, 2], 2), normal(9, 12)),
        case("lengths 1", lambda qkv: ops.attention(qkv, [1, 1], 2), normal(2, 12)),
        case("3 heads of width 1", lambda qkv: ops.attention(qkv, [3, 2], 3), normal(5, 9)),
        case("a Packing", lambda qkv: ops.attention(qkv, ops.Packing([2, 3]), 2), normal(5, 12)),
        case("scale 1e-2", lambda qkv: ops.attention(qkv, [3, 2], 2), 1e-2 * normal(5, 12)),
        case("scale 1e2, softmax saturated", lambda qkv: ops.attention(qkv, [3, 2], 2), 1e2 * normal(5, 12)),
        case("q 1e2, k 1e-2", attention_of, 1e2 * normal(5, 4), 1e-2 * normal(5, 4), normal(5, 4)),
        case("q 1e-2, k 1e2", attention_of, 1e-2 * normal(5, 4), 1e2 * normal(5, 4), normal(5, 4)),
        case("transposed", lambda qkv: ops.attention(qkv, [3, 2], 2), transposed(normal(5, 12))),
        case("strided", lambda qkv: ops.attention(qkv, [3, 2], 2), strided(normal(5, 12))),
        case("negative strides", lambda qkv: ops.attention(qkv, [3, 2], 2), backwards(normal(5, 12))),
        case("residual", lambda qkv: ops.attention(qkv, [3], 1) + qkv[:, :2], normal(3, 6)),
    ],
    "concat": [
        case("two along axis 0", lambda *xs: ops.concat(xs, 0), normal(1, 3), normal(2, 3)),
        case("three along axis 1", lambda *xs: ops.concat(xs, 1), normal(2, 1), normal(2, 3), normal(2, 2)),
        case("three along axis −2", lambda *xs: ops.concat(xs, -2), normal(2, 1, 3), normal(2, 4, 3), normal(2, 2, 3)),
        case("one alone", lambda *xs: ops.concat(xs, 0), normal(2, 3)),
        case("with an empty one", lambda *xs: ops.concat(xs, 0), normal(2, 3), normal(0, 3), normal(1, 3)),
        case("vectors", lambda *xs: ops.concat(xs, 0), normal(2), normal(1)),
        case("same input twice", lambda x: ops.concat([x, x * x, x], axis=1), normal(2, 2)),
        case("transposed, strided", lambda *xs: ops.concat(xs, 1), transposed(normal(2, 3)), strided(normal(2, 2))),
        case("negative strides", lambda *xs: ops.concat(xs, 1), backwards(normal(2, 3)), backwards(normal(2, 2))),
    ],
    "cross_entropy": cross_entropy_cases(),
    "div": binary(ops.div, signed),
    "exp": unary(ops.exp),
    "expand": [
        case("(1, 3) to (2, 3)", lambda x: ops.expand(x, (2, 3)), normal(1, 3)),
        case("column", lambda x: ops.expand(x, (3, 4)), normal(3, 1)),
        case("both axes", lambda x: ops.expand(x, (3, 4)), normal(1, 1)),
        case("new axes", lambda x: ops.expand(x, (2, 3, 4)), normal(4)),
        case("new and stretched", lambda x: ops.expand(x, (2, 3, 4)), normal(3, 1)),
        case("scalar", lambda x: ops.expand(x, (2, 2)), normal()),
        case("to itself", lambda x: ops.expand(x, (2, 3)), normal(2, 3)),
        case("transposed", lambda x: ops.expand(x, (2, 3, 4)), transposed(normal(3, 4))),
        case("negative strides", lambda x: ops.expand(x, (2, 3, 4)), backwards(normal(3, 1))),
        case("then linear", lambda x, w: ops.linear(ops.expand(x, (2, 3, 4)), w), normal(1, 1, 4), normal(2, 4)),
    ],
    "gelu": [
        case("bias, (2, 3)", ops.gelu, normal(2, 3), normal(3)),
        case("bias, three axes", ops.gelu, normal(2, 3, 4), normal(4)),
        case("bias, one row", ops.gelu, normal(4), normal(4)),
        case("bias, lengths 1", ops.gelu, normal(1, 1), normal(1)),
        case("bias, transposed", ops.gelu, transposed(normal(3, 4)), strided(normal(4))),
        case("both tails", ops.gelu, np.linspace(-8, 8, 17)),
        *unary(ops.gelu),
    ],
    "getitem": [
        case("[0:1]", lambda x: x[0:1], normal(2, 3)),
        case("[1]", lambda x: x[1], normal(3, 4)),
        case("[−1]", lambda x: x[-1], normal(3, 4)),
        case("[1, 2], a scalar", lambda x: x[1, 2], normal(3, 4)),
        case("[:, 0]", lambda x: x[:, 0], normal(3, 4)),
        case("[1:, −2:]", lambda x: x[1:, -2:], normal(3, 4)),
        case("[::2, ::−1]", lambda x: x[::2, ::-1], normal(3, 4)),
        case("[3:0:−2]", lambda x: x[3:0:-2], normal(5)),
        case("[2:2], empty", lambda x: x[2:2], normal(3)),
        case("[..., 1]", lambda x: x[..., 1], normal(2, 3, 4)),
        case("[0, ..., None, ::2]", lambda x: x[0, ..., None, ::2], normal(2, 3, 4)),
        case("[None, :, None]", lambda x: x[None, :, None], normal(3, 2)),
        case("[index array]", lambda x: x[np.array([2, 0, 2])], normal(3, 4)),
        case("[list]", lambda x: x[[1, 1]], normal(3, 4)),
        case("parts that overlap", lambda x: x[:-1] * x[1:], normal(4, 2)),
        case("transposed", lambda x: x[:, 1:3], transposed(normal(3, 4))),
        case("strided", lambda x: x[:, 1:3], strided(normal(3, 4))),
        case("negative strides", lambda x: x[:, 1:3], backwards(normal(3, 4))),
    ],
    "l2_loss": loss(ops.l2_loss, normal),
    "layer_norm": layer_norm_cases(),
    "linear": linear_cases(),
    "log": unary(ops.log, positive),
    "matmul": [
        case("(2, 3), (3, 2)", ops.matmul, normal(2, 3), normal(3, 2)),
        case("square", ops.matmul, normal(3, 3), normal(3, 3)),
        case("lengths 1", ops.matmul, normal(1, 1), normal(1, 1)),
        case("row by column", ops.matmul, normal(1, 4), normal(4, 1)),
        case("column by row", ops.matmul, normal(4, 1), normal(1, 3)),
        case("batched", ops.matmul, normal(2, 3, 4), normal(2, 4, 2)),
        case("batch by matrix", ops.matmul, normal(2, 3, 4), normal(4, 2)),
        case("matrix by batch", ops.matmul, normal(3, 4), normal(2, 4, 2)),
        case("batch of 1 by batch", ops.matmul, normal(1, 3, 2), normal(4, 2, 3)),
        case("two batch axes", ops.matmul, normal(2, 1, 3, 2), normal(3, 2, 2)),
        case("x @ x", lambda x: x @ x, normal(3, 3)),
        case("x @ x.T", lambda x: x @ x.T, normal(3, 2)),
        case("transposed, strided", ops.matmul, transposed(normal(3, 4)), strided(normal(4, 2))),
        case("negative strides", ops.matmul, backwards(normal(3, 4)), backwards(normal(4, 2))),
        case("scale 1e-2", ops.matmul, 1e-2 * normal(3, 4), 1e-2 * normal(4, 2)),
        case("scale 1e2", ops.matmul, 1e2 * normal(3, 4), 1e2 * normal(4, 2)),
    ],
    "max": reduction(ops.max, distinct),
    "mean": reduction(ops.mean),
    "mul": binary(ops.mul),
    "neg": unary(ops.neg),
    "power": [
        case("n = 3", lambda x: ops.power(x, 3), signed(2, 3)),
        case("n = 2", lambda x: ops.power(x, 2), signed(3, 4)),
        case("n = 1", lambda x: ops.power(x, 1), signed(3, 4)),
        case("n = 0", lambda x: ops.power(x, 0), signed(3, 4)),
        case("n = −1", lambda x: ops.power(x, -1), signed(3, 4)),
        case("n = −2", lambda x: ops.power(x, -2), signed(3, 4)),
        case("n = 0.5", lambda x: ops.power(x, 0.5), positive(3, 4)),
        case("n = −1.5", lambda x: ops.power(x, -1.5), positive(3, 4)),
        case("n = 2 at 0", lambda x: ops.power(x, 2), np.zeros((2, 2))),
        *unary(lambda x: ops.power(x, 3), signed)[1:],
    ],
    "reshape": [
        case("(2, 3) to (3, 2)", lambda x: ops.reshape(x, (3, 2)), normal(2, 3)),
        case("flat", lambda x: ops.reshape(x, -1), normal(2, 3, 2)),
        case("(12,) to (2, −1, 3)", lambda x: ops.reshape(x, (2, -1, 3)), normal(12)),
        case("scalar to (1, 1)", lambda x: ops.reshape(x, (1, 1)), normal()),
        case("(1, 1) to scalar", lambda x: ops.reshape(x, ()), normal(1, 1)),
        case("transposed", lambda x: ops.reshape(x, (4, 3)), transposed(normal(3, 4))),
        case("strided", lambda x: ops.reshape(x, (4, 3)), strided(normal(3, 4))),
        case("negative strides", lambda x: ops.reshape(x, (4, 3)), backwards(normal(3, 4))),
        case("of a transpose", lambda x: x.T.reshape(2, 6), normal(3, 4)),
        case("beside itself", lambda x: x.reshape(6) * x.reshape((6,)), normal(2, 3)),
    ],
    "rows": rows_cases(),
    "smooth_l1_loss": smooth_l1_cases(),
    "softmax": softmax_cases(),
    "sqrt": unary(ops.sqrt, positive),
    "sub": binary(ops.sub),
    "sum": reduction(ops.sum),
    "tanh": unary(ops.tanh),
    "transpose": [
        case("(2, 3), reversed", ops.transpose, normal(2, 3)),
        case("three axes, reversed", ops.transpose, normal(2, 3, 4)),
        case("3-cycle (1, 2, 0)", lambda x: ops.transpose(x, (1, 2, 0)), normal(2, 3, 4)),
        case("3-cycle (2, 0, 1)", lambda x: ops.transpose(x, (2, 0, 1)), normal(2, 3, 4)),
        case("3-cycle, equal lengths", lambda x: ops.transpose(x, (1, 2, 0)), normal(3, 3, 3)),
        case("4-cycle", lambda x: ops.transpose(x, (1, 2, 3, 0)), normal(2, 1, 3, 2)),
        case("heads (0, 2, 1, 3)", lambda x: ops.transpose(x, (0, 2, 1, 3)), normal(2, 3, 2, 2)),
        case("negative axes", lambda x: ops.transpose(x, (-1, 0, -2)), normal(2, 3, 4)),
        case("identity", lambda x: ops.transpose(x, (0, 1)), normal(2, 3)),
        case("vector", ops.transpose, normal(4)),
        case("scalar", ops.transpose, normal()),
        case("strided", lambda x: ops.transpose(x, (1, 2, 0)), strided(normal(2, 3, 4))),
        case("negative strides", lambda x: ops.transpose(x, (1, 2, 0)), backwards(normal(2, 3, 4))),
        case("x + x.T", lambda x: x + x.T, normal(3, 3)),
    ],
}

# Drawn after all others, so that their numbers, which docs/backward shows, stay the same.
CASES["matmul"] += [
    case("matrix by vector", ops.matmul, normal(2, 3), normal(3)),
    case("vector by matrix", ops.matmul, normal(3), normal(3, 2)),
    case("vector by vector", ops.matmul, normal(3), normal(3)),
    case("batch by vector", ops.matmul, normal(2, 3, 4), normal(4)),
    case("vector by batch", ops.matmul, normal(3), normal(2, 3, 4)),
    case("v @ v", lambda v: v @ v, normal(3)),
    case("matrix by vector, strided", ops.matmul, transposed(normal(3, 4)), strided(normal(4))),
]
MASK = normal(3, 4) > 0
CASES["getitem"] += [
    case("[mask]", lambda x: x[MASK], normal(3, 4)),
    case("[mask of rows]", lambda x: x[MASK[:, 0]], normal(3, 4)),
    case("[mask in a list]", lambda x: x[[True, False, True]], normal(3, 4)),
    case("[mask of columns]", lambda x: x[:, MASK[0]], normal(3, 4)),
    case("[mask, number]", lambda x: x[MASK[:, 0], 1], normal(3, 4)),
    case("[nothing]", lambda x: x[MASK & ~MASK], normal(3, 4)),
    case("[x > 0.55]", lambda x: x[x > 0.55], distinct(3, 4)),
]
