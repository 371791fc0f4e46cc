"""The one-line shape signatures of operations: parsing, checking, and the messages when a shape does not fit."""

import functools
import re

import numpy as np

from minijepa.errors import ShapeError

WORD = r"\s*(\w+|\.\.\.|\*)\s*"
SHAPE = rf"\s*\(({WORD}(,{WORD})*,?)?\s*\)"
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
        self.patterns = [tuple(word.strip() for word in body.split(",") if word.strip()) for body, _ in items]
        self.optional = [mark == "?" for _, mark in items]
        for pattern in self.patterns:
            if pattern.count("...") > 1 or ("*" in pattern and len(pattern) > 1):
                raise ShapeError(f'the signature "{text}": * must be alone in a shape, and ... may occur once')
        self.variadic = items[-1][1] == "+"
        # The same shapes recur in every layer of a training step.
        self.match = functools.lru_cache(maxsize=256)(self._match)

    def _match(self, op, shapes):
        """The shape of each input after broadcasting (None for a missing one). Raises ShapeError."""
        patterns, optional = self.patterns, self.optional
        if self.variadic:
            extra = len(shapes) - len(patterns)
            patterns, optional = patterns + patterns[-1:] * extra, optional + optional[-1:] * extra
        if len(shapes) != len(patterns):
            least = "at least " if self.variadic else ""
            hint = "; pass None for an optional one" if any(optional) else ""
            self.fail(op, shapes, f"it takes {least}{len(patterns)} inputs and got {len(shapes)}{hint}")
        lengths, spread = {}, []
        for i, (pattern, shape) in enumerate(zip(patterns, shapes)):
            if shape is None:
                if not optional[i]:
                    self.fail(op, shapes, f"input {i} is None, but not optional")
                continue
            spread.append(self._bind(op, shapes, i, pattern, lengths))
        try:
            common = np.broadcast_shapes(*(axes for axes in spread if axes is not None))
        except ValueError:
            why = "counted from the right, two lengths must be equal, or one of them 1"
            self.fail(op, shapes, f"the axes under ... don't broadcast: {why}")
        return tuple(
            None if shape is None else self._expanded(pattern, shape, common)
            for pattern, shape in zip(patterns, shapes)
        )

    def _bind(self, op, shapes, i, pattern, lengths):
        """Bind the names of input i in ``lengths``, {name: (length, input)}; return its axes under ``...``, or None."""
        shape = shapes[i]
        if pattern == ("*",):
            return None
        at = pattern.index("...") if "..." in pattern else None
        named = len(pattern) - (at is not None)
        if len(shape) < named or (at is None and len(shape) != named):
            least = "" if at is None else "at least "
            self.fail(op, shapes, f"input {i} has {len(shape)} axes, but needs {least}{named}")
        front = len(pattern) if at is None else at
        back = len(pattern) - front - 1
        pairs = list(zip(pattern[:front], shape)) + (
            list(zip(pattern[front + 1 :], shape[len(shape) - back :])) if back > 0 else []
        )
        for name, length in pairs:
            if name.isdigit() and length != int(name):
                self.fail(op, shapes, f"input {i} has an axis of length {length}, not {name}")
            wanted, where = lengths.setdefault(name, (length, i))
            if length != wanted:
                self.fail(op, shapes, f"{name} is {wanted} in input {where}, but {length} in input {i}")
        return None if at is None else shape[front : len(shape) - max(back, 0)]

    def _expanded(self, pattern, shape, common):
        if "..." not in pattern:  # a parameter without ... is shared by all indices of these axes
            return shape if pattern == ("*",) else common + shape
        front = pattern.index("...")
        back = len(pattern) - front - 1
        return shape[:front] + common + shape[len(shape) - back :] if back else shape[:front] + common

    def fail(self, op, shapes, why, cause=None):
        """Raise the ShapeError that names the operation, its signature and the shapes that it was given."""
        given = ", ".join("None" if s is None else str(s) for s in shapes) or "nothing"
        raise ShapeError(f"{op}: takes {self.text}, was given {given}: {why}") from cause
