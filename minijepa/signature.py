"""The one-line shape signatures of operations: parsing, checking, and the messages when a shape does not fit."""

import functools
import re

import numpy as np

from minijepa.errors import ShapeError

WORD = r"\w+|\.\.\.|\*"
SHAPE = rf"\s*\((\s*({WORD})\s*(,\s*({WORD})\s*)*,?)?\s*\)"
LINE = rf"({SHAPE}\??\s*,)*{SHAPE}[?+]?\s*->{SHAPE}\s*"


class Signature:
    """Checks shapes against a line such as ``"(..., n, k), (..., k, m) -> (..., n, m)"``.

    - A name is a length: equal names, equal lengths. A number is that length.
    - ``...`` matches any number of axes; across inputs they broadcast by NumPy's rules.
    - ``(*)`` matches any shape. ``(o)?`` may be None. ``(*)+``, at the end, matches one or more inputs.

    The part after the arrow is for the reader. Raises ShapeError for a line that is not of this form.
    """

    def __init__(self, text):
        if not re.fullmatch(LINE, text):
            raise ShapeError(f'the signature "{text}" can\'t be read: write it like "(..., n), (n)? -> (..., n)"')
        self.text = text
        items = re.findall(r"\(([^()]*)\)([?+]?)", text.split("->")[0])
        self.patterns = [self._pattern(re.findall(WORD, body)) for body, _ in items]
        self.optional = [mark == "?" for _, mark in items]
        self.variadic = items[-1][1] == "+"
        # The same shapes recur in every layer of a training step.
        self.match = functools.lru_cache(maxsize=256)(self._match)

    def _pattern(self, words):
        """(the names in front of ..., those after it, whether it has one); None for (*), which matches any shape."""
        if words == ["*"]:
            return None
        if words.count("...") > 1 or "*" in words:
            raise ShapeError(f'the signature "{self.text}": * must be alone in a shape, and ... may occur once')
        front = words.index("...") if "..." in words else 0
        return words[:front], [word for word in words[front:] if word != "..."], "..." in words

    def _match(self, op, shapes):
        """The shape of each input after broadcasting (None for a missing one). Raises ShapeError."""
        extra = len(shapes) - len(self.patterns) if self.variadic else 0
        patterns, optional = self.patterns + self.patterns[-1:] * extra, self.optional + self.optional[-1:] * extra
        if len(shapes) != len(patterns):
            least = "at least " if self.variadic else ""
            hint = "; pass None for an optional one" if any(optional) else ""
            self.fail(op, shapes, f"it takes {least}{len(patterns)} inputs and got {len(shapes)}{hint}")
        lengths, spread = {}, []
        for i, (pattern, shape) in enumerate(zip(patterns, shapes)):
            if shape is None and not optional[i]:
                self.fail(op, shapes, f"input {i} is None, but not optional")
            if shape is not None and pattern:
                spread.append(self._bind(op, shapes, i, pattern, lengths))
        try:
            common = np.broadcast_shapes(*spread)
        except ValueError:
            why = "counted from the right, two lengths must be equal, or one of them 1"
            self.fail(op, shapes, f"the axes under ... don't broadcast: {why}")
        return tuple([_expanded(pattern, shape, common) for pattern, shape in zip(patterns, shapes)])

    def _bind(self, op, shapes, i, pattern, lengths):
        """Bind the names of input i in ``lengths``, {name: (length, input)}; return its axes under ``...``."""
        front, back, dots = pattern
        shape, named = shapes[i], len(front) + len(back)
        if len(shape) < named or (not dots and len(shape) > named):
            least = "at least " if dots else ""
            self.fail(op, shapes, f"input {i} has {len(shape)} axes, but needs {least}{named}")
        start, stop = len(front), len(shape) - len(back)
        for name, length in zip(front + back, shape[:start] + shape[stop:]):
            if name.isdigit() and length != int(name):
                self.fail(op, shapes, f"input {i} has an axis of length {length}, not {name}")
            wanted, where = lengths.setdefault(name, (length, i))
            if length != wanted:
                self.fail(op, shapes, f"{name} is {wanted} in input {where}, but {length} in input {i}")
        return shape[start:stop]

    def fail(self, op, shapes, why, cause=None):
        """Raise the ShapeError that names the operation, its signature and the shapes that it was given."""
        given = ", ".join("None" if s is None else str(s) for s in shapes) or "nothing"
        raise ShapeError(f"{op}: takes {self.text}, was given {given}: {why}") from cause


def _expanded(pattern, shape, common):
    """``shape`` with ``common`` in place of its axes under ``...``; without one, all indices of these axes share it."""
    if shape is None or pattern is None:
        return shape
    front, back, _ = pattern
    return shape[: len(front)] + common + shape[len(shape) - len(back) :]
