#!/usr/bin/env python3
"""Remake the pictures beside this file, from the built-in shapes alone: python docs/pictures/remake.py

Trains runs/shapes if that is not there (some minutes on 2 cores), probes it, and saves its pictures with few colours.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

here = Path(__file__).resolve().parent
root = here.parent.parent
sys.path.insert(0, str(root))
from minijepa.data import make_shapes  # noqa: E402


def run(*command):
    subprocess.run([sys.executable, *command], cwd=root, check=True)


if not (root / "runs/shapes").exists():
    run("train.py", "--preset", "laptop", "--dataset", "shapes", "--set", "epochs=6", "--run-dir", "runs/shapes")
with tempfile.TemporaryDirectory() as drawings:
    for i, image in enumerate(make_shapes(4, seed=7)[0], start=1):
        Image.fromarray(image.transpose(1, 2, 0)).resize((320, 240)).save(Path(drawings) / f"drawing {i}.png")
    run("probe.py", "runs/shapes", "--pictures", "--images", drawings)
for name in ("masks", "curves", "confusion", "neighbours", "pca", "predictions", "own_images"):
    with Image.open(root / "runs/shapes" / f"{name}.png") as picture:
        picture.quantize(256, dither=Image.Dither.NONE).save(here / f"{name}.png", optimize=True)
