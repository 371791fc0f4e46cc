#!/usr/bin/env python3
"""Remake the pictures beside this file: python docs/pictures/remake.py [RUN]

RUN (runs/laptop): a run on CIFAR-10, for the good ones. Those called bad_ come from runs/shapes, which is trained if it
is not there: the built-in shapes, a network too small and too few epochs. Pictures are saved with few colours.
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

FEATURES = "curves", "confusion", "neighbours", "pca", "predictions"


def run(*command):
    subprocess.run([sys.executable, *command], cwd=root, check=True)


def keep(folder, names, prefix=""):
    for name in names:
        with Image.open(root / folder / f"{name}.png") as picture:
            picture.quantize(256, dither=Image.Dither.NONE).save(here / f"{prefix}{name}.png", optimize=True)


good = sys.argv[1] if len(sys.argv) > 1 else "runs/laptop"
run("probe.py", good, "--pictures")
keep(good, ["masks", *FEATURES])

if not (root / "runs/shapes").exists():
    small = (
        "encoder_embed_dim=128 encoder_depth=4 encoder_num_heads=4 predictor_embed_dim=64 patch_embed_gain=1 "
        "init_std=0.02 augment_crop=4 augment_scale=(1,1) ema_momentum_start=0.99 warmup_epochs=0.5"
    ).split()
    settings = [part for setting in small for part in ("--set", setting)]
    run("train.py", "--preset", "laptop", "--dataset", "shapes", "--epochs", "6", "--run-dir", "runs/shapes", *settings)
with tempfile.TemporaryDirectory() as drawings:
    for i, image in enumerate(make_shapes(4, seed=7)[0], start=1):
        Image.fromarray(image.transpose(1, 2, 0)).resize((320, 240)).save(Path(drawings) / f"drawing {i}.png")
    run("probe.py", "runs/shapes", "--pictures", "--images", drawings)
keep("runs/shapes", FEATURES, "bad_")
keep("runs/shapes", ["own_images"])
