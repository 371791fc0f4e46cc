"""Which classes a classifier mistakes for which."""

import math

import numpy as np

from minijepa.pictures.canvas import GREY, INK, LABEL, WHITE, Sheet, text_width

CELL_HEIGHT = 44
NAMES = 15  # size of text


def confusion_picture(matrix, classes, path=None, note=""):
    """A heat map of `matrix` (C, C), counts with true classes in rows and predicted ones in columns.

    Each cell shows which percentage of its row's images it holds, and how many they are; a class without images shows
    dashes. The title gives the accuracy over all images.
    """
    totals = matrix.sum(axis=1)
    longest = max(text_width(name, NAMES) for name in classes)
    cell_width, beside, above = max(60, longest + 12), longest + 44, 62
    sheet = Sheet(
        beside + len(classes) * cell_width,
        above + len(classes) * CELL_HEIGHT,
        f"Linear probe: {100 * np.trace(matrix) / max(1, matrix.sum()):.1f}% of {matrix.sum():,} images are right",
        "Rows are the true classes, columns what the probe took them for. A cell: percent of its row, and images. The "
        "diagonal is right.",
        note,
    )
    left, top = sheet.left + beside, sheet.top + above
    centre = left + len(classes) * cell_width // 2, top + len(classes) * CELL_HEIGHT // 2
    sheet.text((centre[0], sheet.top + 20), "predicted", 16, GREY, "ms")
    sheet.vertical_text((sheet.left + 8, centre[1]), "true", 16, GREY)
    for i, name in enumerate(classes):
        sheet.text((left + i * cell_width + cell_width // 2, top - 12), name, NAMES, INK, "ms")
        sheet.text((left - 12, top + i * CELL_HEIGHT + CELL_HEIGHT // 2), name, NAMES, INK, "rm")
    for row, column in np.ndindex(matrix.shape):
        share = matrix[row, column] / totals[row] if totals[row] else 0.0
        x, y = left + column * cell_width, top + row * CELL_HEIGHT
        sheet.draw.rectangle((x, y, x + cell_width - 2, y + CELL_HEIGHT - 2), fill=_shade(share))
        colour = WHITE if share > 0.28 else INK
        middle = x + cell_width // 2 - 1
        sheet.text((middle, y + 20), f"{100 * share:.1f}" if totals[row] else "-", 15, colour, "ms")
        sheet.text((middle, y + 36), f"{matrix[row, column]:,}", LABEL - 2, colour if share > 0.02 else GREY, "ms")
    return sheet.saved(path)


def _shade(share):
    """From nearly white at 0 to dark blue at 1. The root makes rare confusions visible."""
    channels = zip((245, 247, 250), (96, 150, 230), (23, 55, 130))
    return tuple(round(np.interp(math.sqrt(share), (0, 0.5, 1), channel)) for channel in channels)
