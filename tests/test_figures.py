"""The figures of docs/backward are what their script draws, and can be read: nothing overlaps or leaves the card."""

import importlib
import itertools
import re
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[1] / "docs" / "backward"
FIGURES = PAGES / "figures"

sys.path.insert(0, str(FIGURES))
make = importlib.import_module("make")
sys.path.remove(str(FIGURES))

each_figure = pytest.mark.parametrize("figure", make.FIGURES, ids=lambda figure: figure.__name__)


def extent(x, y, anchor, size, text):
    """left, top, right, bottom of a text, by the usual width of letters."""
    letters = [c for c in text if not unicodedata.combining(c)]
    width = size * sum(0.3 if c in " .,:[]()|·" else 0.58 for c in letters)
    left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
    return left, y - 0.45 * size, left + width, y + 0.45 * size


@each_figure
def test_the_file_is_what_is_drawn(figure):
    file = FIGURES / f"{figure.__name__}.svg"
    assert file.read_text(encoding="utf-8") == str(figure()), "run docs/backward/figures/make.py, and look at it"
    root = ElementTree.parse(file).getroot()
    assert root.get("aria-label") == root[0].text != ""
    assert root[1].get("fill") == "#ffffff"  # the card, for pages with a dark background


@each_figure
def test_texts_keep_apart_and_stay_on_the_card(figure):
    drawing = figure()
    boxes = [(extent(*text), text[-1]) for text in drawing.texts if text[-1]]
    assert len(boxes) > 10
    for (left, top, right, bottom), text in boxes:
        assert left > 8 and top > 4 and right < drawing.width - 8 and bottom < drawing.height - 4, text
    for ((a, b, c, d), one), ((e, f, g, h), other) in itertools.combinations(boxes, 2):
        assert c <= e or g <= a or d <= f or h <= b, f"{one!r} and {other!r} overlap"


def test_each_page_shows_a_figure_and_each_figure_is_shown():
    shown = []
    for page in sorted(PAGES.glob("*.md")):
        figures = re.findall(r"^!\[([^\]]+)\]\(figures/(\w+)\.svg\)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert figures or page.stem == "README", page.name
        assert all(len(alternative) > 20 for alternative, _ in figures)
        shown += [name for _, name in figures]
    drawn = {figure.__name__ for figure in make.FIGURES}
    assert sorted(shown) == sorted(drawn) == sorted(path.stem for path in FIGURES.glob("*.svg"))
