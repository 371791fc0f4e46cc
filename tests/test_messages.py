"""What a newcomer reads: messages of the engine, the operations and the check that no other test quotes, as text."""

import numpy as np
import pytest
from tiny import differentiate, operation, raises

from minijepa import Parameter, Tensor, autograd, gradcheck, ops, tensor
from minijepa.errors import DeviceError, MinijepaError
from minijepa.ops.elementwise import Neg
from minijepa.signature import Signature


def assign():
    Tensor([1.0, 2.0])[0] = 3


def backward_into_another_shape():
    x = Parameter([1.0, 2.0])
    x.grad = np.zeros((2, 1), np.float32)
    differentiate(lambda: x * 2, [1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            assign,
            "a Tensor can't be changed in place, because the tape may still need its old value: build a new one "
            "(concat, rows, multiplication by a 0/1 mask), or write to tensor.data after every backward that uses it",
        ),
        (backward_into_another_shape, "the gradient kept for a leaf of shape (2,) has shape (2, 1)"),
        (
            lambda: gradcheck(lambda x: Parameter(np.ones(2, np.float32)).exp(), np.ones(2)),
            "fn was given float64 and returned float32: too few digits for a difference",
        ),
        (
            lambda: Signature("(n, *) -> ()"),
            'the signature "(n, *) -> ()": * must be alone in a shape, and ... may occur once',
        ),
        (
            lambda: ops.power([1.0], Tensor([2.0])),
            "power: the exponent must be a number, got Tensor; xʸ is exp(y log(x))",
        ),
        (lambda: ops.rows(np.ones((3, 2)), [0, 3]), "rows: index runs from 0 to 3, but x has 3 rows"),
        (
            lambda: ops.Packing([2, 0]),
            "a packing needs the lengths of at least one sequence, whole numbers of at least 1",
        ),
        (
            lambda: ops.Packing([[1], [1, 2]]),
            "a packing needs the lengths of at least one sequence, whole numbers of at least 1",
        ),
        (
            lambda: ops.attention(np.ones((4, 9)), [4], 2),
            "attention: takes (T, 3D), D ≥ 1 and divisible by 2 heads, was given (4, 9)",
        ),
        (
            lambda: ops.attention(np.ones((4, 12)), [2, 3], 2),
            "attention: the packing's lengths sum to 5, but qkv has 4 rows",
        ),
        (
            lambda: ops.mean(np.ones((0, 3))),
            "mean: takes (*) -> (*), was given (0, 3): no elements to average",
        ),
    ],
)
def test_what_is_said(call, message):
    with raises(MinijepaError, message):
        call()


class OnTheCard(np.ndarray):
    """A NumPy array that says it lives on a GPU."""


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(autograd, "device_of", lambda a: "cuda" if isinstance(a, OnTheCard) else "cpu")
    for module in (tensor, autograd):
        monkeypatch.setattr(module, "plain", np.asanyarray)


def test_what_is_said_of_a_gradient_on_another_device(card):
    x = Parameter([1.0, 2.0])
    elsewhere = operation(backward=lambda ctx, dy: (dy.view(OnTheCard),), name="Elsewhere", base=Neg)
    for dy, message in (
        (np.ones(2, np.float32).view(OnTheCard), "backward: the cotangent is on cuda, the tensor of shape (2,) on cpu; "
         "move it with to_device"),
        ([1, 1], "elsewhere: backward returned an array on cuda for input 0, which is on cpu"),
    ):  # fmt: skip
        with raises(DeviceError, message):
            differentiate(lambda: elsewhere.apply(x), dy)


def test_devices_do_not_mix(card):
    here, there = Tensor([1.0, 2.0]), Tensor(0.0)
    there.data = np.ones((3, 2), np.float32).view(OnTheCard)
    message = "add: its inputs are on different devices (cpu (2,), cuda (3, 2)); move them with to_device"
    with raises(DeviceError, message):
        here + there
    assert (there + there).shape == (3, 2) and (here + here).shape == (2,)
