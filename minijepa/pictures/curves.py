"""Numbers over time: a panel each, with round numbers on the axes."""

import math

import numpy as np
from PIL import Image, ImageDraw

from minijepa.errors import ShapeError
from minijepa.pictures.canvas import BLUE, GREY, INK, LINE, Sheet

PANEL = (330, 212)  # a curve with its labels
PLOT = (52, 34, 312, 164)  # ... and the box inside that holds the line itself
SMOOTH = 4  # lines are drawn this many times larger, then shrunk: Pillow's own are jagged
ACROSS = 3  # panels in a row
PAD = 6  # room around a plot for the line's width and the last value's dot


def curves_picture(columns, x, path=None, title="Training", caption=""):
    """A panel for each of `columns` ({name: numbers}) over `x`, with its last value.

    Values that are not finite (a metric that is not measured every epoch) are left out; the line goes on to the next.

    Raises ShapeError for a column of another length than x.
    """
    x = np.asarray(x, float)
    across = min(ACROSS, max(1, len(columns)))
    sheet = Sheet(across * PANEL[0], math.ceil(len(columns) / across) * PANEL[1], title, caption)
    for i, (name, values) in enumerate(columns.items()):
        values = np.asarray(values, float)
        if values.shape != x.shape or x.ndim != 1:
            raise ShapeError(f"curves_picture: column {name!r} has shape {values.shape}, x has {x.shape}")
        corner = sheet.left + i % across * PANEL[0], sheet.top + i // across * PANEL[1]
        _panel(sheet, corner, name, values, x)
    return sheet.saved(path)


def _panel(sheet, corner, name, values, x):
    left, top, right, bottom = (PLOT[i] + corner[i % 2] for i in range(4))
    sheet.text((left, top - 12), name, 15, INK)
    finite = np.isfinite(values)
    if not finite.any():
        sheet.text(((left + right) // 2, (top + bottom) // 2), "not measured", 13, GREY, "mm")
        return
    marks = ticks(values[finite].min(), values[finite].max(), 4)
    low, high = marks[0], marks[-1]
    first, last = x[0], x[-1] if x[-1] > x[0] else x[0] + 1

    def place(value_x, value_y):
        return left + (right - left) * (value_x - first) / (last - first), (
            top + (bottom - top) * (high - value_y) / (high - low)
        )

    for tick, text in zip(marks, tick_texts(marks)):
        _, y = place(first, tick)
        sheet.draw.line((left, round(y), right, round(y)), fill=LINE)
        sheet.text((left - 8, round(y)), text, 12, GREY, "rm")
    for tick in _whole_numbers(x[0], x[-1], 5):
        position, _ = place(tick, low)
        sheet.draw.line((round(position), bottom, round(position), bottom + 4), fill=GREY)
        sheet.text((round(position), bottom + 17), f"{tick:g}", 12, GREY, "ms")
    sheet.text((right, bottom + 33), "epoch", 12, GREY, "rs")
    sheet.text((right, top - 12), _number(values[finite][-1]), 15, BLUE, "rs")
    _line(sheet, (left, top, right, bottom), [place(*p) for p in zip(x[finite].tolist(), values[finite].tolist())])


def _line(sheet, box, points):
    """A smooth blue line through points of the screen, inside of ``box``, with a dot at its end."""
    left, top, right, bottom = box
    mask = Image.new("L", ((right - left + 2 * PAD) * SMOOTH, (bottom - top + 2 * PAD) * SMOOTH))
    pen = ImageDraw.Draw(mask)
    points = [((x - left + PAD) * SMOOTH, (y - top + PAD) * SMOOTH) for x, y in points]
    pen.line(points, fill=255, width=2 * SMOOTH, joint="curve")
    for x, y in points if len(points) <= 20 else points[-1:]:
        pen.circle((x, y), 3.5 * SMOOTH, fill=255)
    mask = mask.resize((mask.width // SMOOTH, mask.height // SMOOTH), Image.Resampling.BOX)
    sheet.image.paste(BLUE, (left - PAD, top - PAD), mask)


def ticks(low, high, about):
    """Round numbers from at most low to at least high, ``about`` so many."""
    if not high - low > 1e-6 * max(abs(low), abs(high)):  # a constant runs through the middle
        room = 0.5 * abs(low) or 1.0
        low, high = low - room, high + room
    step = _round_step((high - low) / about)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def tick_texts(marks):
    """Ticks as text, with as many digits as tell them apart."""
    step, largest = marks[1] - marks[0], max(abs(marks[0]), abs(marks[-1]))
    finest, coarsest = (math.floor(math.log10(x) + 1e-9) for x in (step, largest))
    if finest < -4 or coarsest >= 6:
        return [f"{mark:.{coarsest - finest}e}" for mark in marks]
    return [f"{mark:,.{max(0, -finest)}f}" for mark in marks]


def _whole_numbers(low, high, about):
    """Multiples of a round whole number from low to high, and both ends where there is room."""
    step = max(1, _round_step((high - low) / about)) if high > low else 1
    inner = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    inner = [t for t in inner if t - low >= 0.6 * step and high - t >= 0.6 * step]
    return [low, *inner, high] if high > low else [low]


def _round_step(least):
    """The smallest of ... 1, 2, 5, 10, 20, 50 ... that is at least ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _number(value):
    """Four digits, and without an exponent where a reader wants none: 24,310 rather than 2.431e+04."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.4g}"
