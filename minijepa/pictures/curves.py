"""Numbers over time, of one run or several: one panel each, with round numbers on the axes."""

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from minijepa.pictures.canvas import BLOCK_COLOURS, BLUE, GREY, INK, LABEL, LINE, ORANGE, Sheet

PANEL = (330, 212)  # a curve with its labels
PLOT = (52, 34, 312, 164)  # ... and the box inside that holds the line itself
TINY, HUGE = 1e-300, 1e300  # nearer to the ends of float64's range, steps between ticks vanish or overflow
SMOOTH = 4  # lines are drawn this many times larger, then shrunk: Pillow's own are jagged
ACROSS = 3  # panels in a row
PAD = 6  # room around a plot for the line's width and the last value's dot
COLOURS = [BLUE, ORANGE, *BLOCK_COLOURS[2:], INK, GREY]  # of runs, in turn
LETTERS = "ABCDEF"  # their names in the panels
LEGEND = 24  # height of a line of it


@dataclass(frozen=True)
class Curves:
    """The numbers of a run: ``columns`` {panel: numbers} over ``x``.

    ``fine`` {panel: (x, numbers)}: the same at every step. ``levels`` {panel: {name: number}}: what to compare with.
    """

    columns: dict
    x: np.ndarray
    fine: dict = field(default_factory=dict)
    levels: dict = field(default_factory=dict)
    name: str = ""

    def of(self, panel):
        """(x, numbers), those that can be drawn, of the column and of the finer one: four arrays."""
        coarse = self.x, self.columns.get(panel, np.full(len(self.x), np.nan))
        points = np.array(coarse, float), np.array(self.fine.get(panel, ((), ())), float)
        return [row for pair in points for row in pair[:, np.abs(pair[1]) < HUGE]]


def curves_picture(runs, path=None, title="Training", caption=""):
    """A panel for each column of ``runs``, a Curves or up to six of them, one over the other.

    Values that are not finite (a metric that is not measured every epoch), or too large to draw, are left out; the line
    goes on to the next.
    """
    runs = [runs] if isinstance(runs, Curves) else list(runs)
    panels = list(dict.fromkeys(name for run in runs for name in run.columns))
    across, legend = min(ACROSS, max(1, len(panels))), LEGEND * len(runs) if len(runs) > 1 else 0
    height = legend + math.ceil(len(panels) / across) * PANEL[1]
    sheet = Sheet(across * PANEL[0], height, title, caption)
    for i, run in enumerate(runs if legend else ()):
        y = sheet.top + LEGEND * i + 12
        sheet.draw.line((sheet.left, y, sheet.left + 24, y), fill=COLOURS[i], width=3)
        sheet.text((sheet.left + 32, y), f"{LETTERS[i]}  {run.name}", LABEL, COLOURS[i], "lm")
    for i, name in enumerate(panels):
        corner = sheet.left + i % across * PANEL[0], sheet.top + legend + i // across * PANEL[1]
        _panel(sheet, corner, name, runs)
    return sheet.saved(path)


def _panel(sheet, corner, name, runs):
    left, top, right, bottom = box = tuple(PLOT[i] + corner[i % 2] for i in range(4))
    sheet.text((left, top - 12), name, 15, INK)
    numbers = [run.of(name) for run in runs]
    known = np.concatenate([values for x, y, fine_x, fine_y in numbers for values in (y, fine_y)])
    if not len(known):
        sheet.text(((left + right) // 2, (top + bottom) // 2), "not measured", 13, GREY, "mm")
        return
    levels = runs[0].levels.get(name, {})
    known = np.append(known, list(levels.values()))
    marks = ticks(known.min(), known.max(), 4)
    low, high = marks[0], marks[-1]
    ends = [float(x) for run in runs for x in (*run.x[:1], *run.x[-1:], *run.of(name)[2][:1])]
    first, last = min(ends), max(ends) if max(ends) > min(ends) else min(ends) + 1

    def place(value_x, value_y):
        return left + (right - left) * (value_x - first) / (last - first), (
            top + (bottom - top) * (high - value_y) / (high - low)
        )

    for tick, text in zip(marks, tick_texts(marks)):
        _, y = place(first, tick)
        sheet.draw.line((left, round(y), right, round(y)), fill=LINE)
        sheet.text((left - 8, round(y)), text, 12, GREY, "rm")
    for tick in _whole_numbers(math.ceil(first), max(ends), 5):
        position, _ = place(tick, low)
        sheet.draw.line((round(position), bottom, round(position), bottom + 4), fill=GREY)
        sheet.text((round(position), bottom + 17), f"{tick:g}", 12, GREY, "ms")
    sheet.text((right, bottom + 33), "epoch", 12, GREY, "rs")
    last_y = [place(first, y[-1])[1] if len(y) else None for _, y, _, _ in numbers]
    heights = [round(place(first, value)[1]) for value in levels.values()]
    for i, (label, y) in enumerate(zip(levels, heights)):
        others = [*heights[:i], *heights[i + 1 :], *(end for end in last_y if end is not None)]
        _level(sheet, box, y, label, i % 2 == 1, others)
    for (x, y, fine_x, fine_y), colour in zip(numbers, COLOURS):
        if len(fine_x):
            pale = tuple((2 * 255 + channel) // 3 for channel in colour)
            _line(sheet, box, envelope([place(*p) for p in zip(fine_x, fine_y)]), pale, 1, dots=False)
        if len(x):
            points = [place(*p) for p in zip(x, y)]
            _line(sheet, box, points, colour, 2, dots=len(points) <= 20)
    if len(runs) == 1 and len(numbers[0][1]):
        sheet.text((right, top - 12), _number(numbers[0][1][-1]), 15, BLUE, "rs")
    if len(runs) > 1:
        _letters(sheet, right + 8, last_y)


def _level(sheet, box, y, label, at_left, others):
    """A broken line across the panel, with its name above it, or below if another line is there (at these heights)."""
    left, top, right, bottom = box
    for x in range(left, right, 8):
        sheet.draw.line((x, y, min(x + 4, right), y), fill=GREY)
    below = y <= top + 16 or (y < bottom - 16 and any(y - 18 < other <= y for other in others))
    y += 14 if below else -4
    sheet.text((left + 4 if at_left else right - 4, y), label, 11, GREY, "ls" if at_left else "rs")


def _letters(sheet, x, ends):
    """The letter of each run next to its line's end, moved down if another is there."""
    lowest = -math.inf
    for y, i in sorted((y, i) for i, y in enumerate(ends) if y is not None):
        lowest = max(y, lowest + 12)
        sheet.text((x, round(lowest)), LETTERS[i], 11, COLOURS[i], "lm")


def envelope(points):
    """Points (x, y) of the screen, thinned to the lowest and the highest of each pixel of x: spikes stay."""
    columns = {}
    for x, y in points:
        columns.setdefault(math.floor(x), []).append((x, y))
    thinned = []
    for some in columns.values():
        ends = {some[0], min(some, key=lambda p: p[1]), max(some, key=lambda p: p[1]), some[-1]}
        thinned += [p for p in some if p in ends] if len(some) > 4 else some
    return thinned


def _line(sheet, box, points, colour, width, dots):
    """A smooth line through points of the screen, inside ``box``, with a dot at its end, or at all points."""
    left, top, right, bottom = box
    mask = Image.new("L", ((right - left + 2 * PAD) * SMOOTH, (bottom - top + 2 * PAD) * SMOOTH))
    pen = ImageDraw.Draw(mask)
    points = [((x - left + PAD) * SMOOTH, (y - top + PAD) * SMOOTH) for x, y in points]
    pen.line(points, fill=255, width=width * SMOOTH, joint="curve")
    for x, y in points if dots else points[-1:] if width > 1 else ():
        pen.circle((x, y), 3.5 * SMOOTH, fill=255)
    mask = mask.resize((mask.width // SMOOTH, mask.height // SMOOTH), Image.Resampling.BOX)
    sheet.image.paste(colour, (left - PAD, top - PAD), mask)


def ticks(low, high, about):
    """``about`` so many round numbers, from at most low to at least high."""
    if not high - low > max(TINY, 1e-6 * max(abs(low), abs(high))):  # a constant runs through the middle
        room = 0.5 * abs(low) if abs(low) > TINY else 1.0
        low, high = low - room, high + room
    step = _round_step((high - low) / about)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def tick_texts(marks):
    """Ticks as text, with enough digits to tell them apart."""
    step, largest = marks[1] - marks[0], max(abs(marks[0]), abs(marks[-1]))
    finest, coarsest = (math.floor(math.log10(x) + 1e-9) for x in (step, largest))
    if finest < -4 or coarsest >= 6:
        return [f"{mark:.{coarsest - finest}e}" for mark in marks]
    return [f"{mark:,.{max(0, -finest)}f}" for mark in marks]


def _whole_numbers(low, high, about):
    """Multiples of a round whole number from low to high, and both ends if there is room."""
    step = max(1, _round_step((high - low) / about)) if high > low else 1
    inner = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    inner = [t for t in inner if t - low >= 0.6 * step and high - t >= 0.6 * step]
    return [low, *inner, high] if high > low else [low]


def _round_step(least):
    """The smallest of ... 1, 2, 5, 10, 20, 50 ... that is at least ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _number(value):
    """Four digits, preferably without an exponent: 24,310 rather than 2.431e+04."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.4g}"
