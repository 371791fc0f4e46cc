"""The shape signatures of operations: what they read, what they let pass, and what they say."""

import pytest
from tiny import raises

from minijepa.errors import ShapeError
from minijepa.signature import Signature

RIGHT = "the axes under ... don't broadcast: counted from the right, two lengths must be equal, or one of them 1"
NONE = "; pass None for an optional one"


def match(text, *shapes):
    return Signature(text).match("op", shapes)


@pytest.mark.parametrize(
    ("text", "shapes", "broadcast"),
    [
        ("() -> ()", [()], [()]),
        ("(n) -> ()", [(5,)], [(5,)]),
        ("(t, d), (t, d) -> ()", [(2, 3), (2, 3)], [(2, 3), (2, 3)]),
        ("(3, n) -> (n)", [(3, 7)], [(3, 7)]),
        ("(n,) -> (n,)", [(3,)], [(3,)]),
        ("(*) -> (*)", [()], [()]),
        ("(*) -> (*)", [(0, 1, 2)], [(0, 1, 2)]),
        ("(*)+ -> (*)", [(1,), (2, 3), ()], [(1,), (2, 3), ()]),
        # `...` broadcasts between inputs, whatever else stands beside it
        ("(...), (...) -> (...)", [(2, 3), (3,)], [(2, 3), (2, 3)]),
        ("(...), (...) -> (...)", [(4, 1), (2, 1, 5)], [(2, 4, 5), (2, 4, 5)]),
        ("(...), (...) -> (...)", [(), (2,)], [(2,), (2,)]),
        ("(...), (...) -> (...)", [(0, 3), (1, 3)], [(0, 3), (0, 3)]),
        ("(..., n, k), (..., k, m) -> (..., n, m)", [(5, 2, 3), (3, 4)], [(5, 2, 3), (5, 3, 4)]),
        ("(..., n, k), (..., k, m) -> (..., n, m)", [(5, 1, 2, 3), (6, 3, 4)], [(5, 6, 2, 3), (5, 6, 3, 4)]),
        ("(n, ...) -> (t, ...)", [(4, 2, 3)], [(4, 2, 3)]),
        ("(n, ..., m) -> (n, m)", [(4, 2, 3, 5)], [(4, 2, 3, 5)]),
        ("(n, ..., m) -> (n, m)", [(4, 5)], [(4, 5)]),
        # an input without `...` is used again for each index under the others' `...`
        ("(..., n), (n) -> (..., n)", [(2, 5, 3), (3,)], [(2, 5, 3), (2, 5, 3)]),
        ("(..., i), (o, i), (o)? -> (..., o)", [(7, 3), (2, 3), None], [(7, 3), (7, 2, 3), None]),
        ("(..., i), (o, i), (o)? -> (..., o)", [(3,), (2, 3), (2,)], [(3,), (2, 3), (2,)]),
    ],
)
def test_shapes_that_fit_and_what_they_broadcast_to(text, shapes, broadcast):
    assert match(text, *shapes) == tuple(broadcast)


@pytest.mark.parametrize(
    ("text", "shapes", "why"),
    [
        ("(t, d), (t, d) -> ()", [(2, 3), (2, 4)], "was given (2, 3), (2, 4): d is 3 in input 0, but 4 in input 1"),
        ("(n, n) -> ()", [(2, 3)], "was given (2, 3): n is 2 in input 0, but 3 in input 0"),
        ("(3, n) -> (n)", [(4, 7)], "was given (4, 7): input 0 has an axis of length 4, not 3"),
        ("(n) -> ()", [()], "was given (): input 0 has 0 axes, but needs 1"),
        ("(n) -> ()", [(1, 2)], "was given (1, 2): input 0 has 2 axes, but needs 1"),
        ("(..., n, k) -> ()", [(3,)], "was given (3,): input 0 has 1 axes, but needs at least 2"),
        ("(n, ..., m) -> ()", [(3,)], "was given (3,): input 0 has 1 axes, but needs at least 2"),
        ("(...), (...) -> (...)", [(2, 3), (4,)], "was given (2, 3), (4,): " + RIGHT),
        ("(..., n), (n) -> ()", [(2, 3), (2,)], "was given (2, 3), (2,): n is 3 in input 0, but 2 in input 1"),
        (
            "(i), (o, i), (o) -> (o)",
            [(3,), (2, 3), (4,)],
            "was given (3,), (2, 3), (4,): o is 2 in input 1, but 4 in input 2",
        ),
        ("(n), (n)? -> ()", [None, (2,)], "was given None, (2,): input 0 is None, but not optional"),
        ("(n), (n)? -> ()", [(2,), (3,)], "was given (2,), (3,): n is 2 in input 0, but 3 in input 1"),
        ("(n), (n)? -> ()", [(2,)], "was given (2,): it takes 2 inputs and got 1" + NONE),
        ("(n) -> ()", [(2,), (2,)], "was given (2,), (2,): it takes 1 inputs and got 2"),
        ("(n)+ -> ()", [], "was given nothing: it takes at least 1 inputs and got 0"),
        ("(n)+ -> ()", [(2,), (2,), (3,)], "was given (2,), (2,), (3,): n is 2 in input 0, but 3 in input 2"),
        ("(*)+ -> ()", [(2,), None], "was given (2,), None: input 1 is None, but not optional"),
    ],
)
def test_a_misfit_names_the_operation_the_signature_the_shapes_and_the_reason(text, shapes, why):
    with raises(ShapeError, f"op: takes {text}, {why}"):
        match(text, *shapes)


@pytest.mark.parametrize(
    "text", ["", "n -> n", "(n)", "(n -> n)", "(n) (m) -> (n)", "(n)+, (m) -> ()", "(n)* -> ()", "(n m) -> ()", "-> ()"]
)
def test_a_signature_that_cannot_be_read_is_refused_when_the_operation_is_defined(text):
    with raises(ShapeError, f'the signature "{text}" can\'t be read: write it like "(..., n), (n)? -> (..., n)"'):
        Signature(text)
