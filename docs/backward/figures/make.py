#!/usr/bin/env python3
"""Draws the figures of docs/backward, beside this file: python docs/backward/figures/make.py

Every number in them is computed by the engine. A test compares the files with what is drawn here.
"""

import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path[:0] = [str(here.parents[2]), str(here)]
import basics  # noqa: E402
import layers  # noqa: E402

FIGURES = (
    basics.start, basics.linear, basics.broadcasting, basics.rows, basics.rest, basics.tape, layers.gelu,
    layers.softmax, layers.cross_entropy, layers.layer_norm, layers.attention, layers.step,
)  # fmt: skip


def main():
    for figure in FIGURES:
        (here / f"{figure.__name__}.svg").write_text(str(figure()), encoding="utf-8")


if __name__ == "__main__":
    main()
