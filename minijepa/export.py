"""python -m minijepa.export RUN FILE: only a run's target encoder, for other programs."""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np

from minijepa import backend
from minijepa.backend.threads import at_most, worker_threads
from minijepa.cli import add_machine, exit_status, parse, path, tell
from minijepa.errors import ConfigError
from minijepa.evaluation.evaluate import probed_run
from minijepa.training import checkpoint, exported


def parser():
    p = argparse.ArgumentParser(
        prog="python -m minijepa.export",
        description="Write only a run's target encoder, with the names of timm's VisionTransformer. "
        "minijepa.load and probe.py take the .npz.",
        epilog="timm computes the same features with class_token=False, global_pool='avg', fc_norm=False and "
        "act_layer='gelu_tanh': see README.md.",
    )
    p.add_argument("run", type=path, help="a run folder, a checkpoint file, or an exported encoder")
    p.add_argument("file", type=path, help="a new file: .npz, or .safetensors if the package safetensors is installed")
    p.add_argument("--float16", action="store_true", help="half the size; features differ by about a thousandth")
    p.add_argument(
        "--classifier", action="store_true",
        help="with the classifier that probe.py fits to its features (head.weight, head.bias); needs the data set",
    )  # fmt: skip
    p.add_argument("--note", default="", metavar="TEXT", help="a line to store in the file, such as its origin")
    add_machine(p, data="where CIFAR-10 is, for --classifier")
    return p


def main(argv=None):
    args = parse(parser(), argv)
    return exit_status("export", lambda: run(args))


def run(args):
    with at_most(worker_threads(args.threads)):
        return export(args)


def export(args):
    file, device = Path(args.file), backend.resolve_device(args.device)
    if file.suffix not in exported.SUFFIXES:
        raise ConfigError(f"{file} must end in {' or '.join(exported.SUFFIXES)}")
    if file.exists():
        raise ConfigError(f"{file} exists: choose another name, or remove it")
    if not file.parent.is_dir():
        raise ConfigError(f"{file.parent} is not a folder: make it first")
    if file.suffix == ".safetensors" and not importlib.util.find_spec("safetensors"):
        raise ConfigError("for .safetensors, install it first (pip install safetensors), or name an .npz file")
    about, model = checkpoint.loaded(args.run, device)
    if args.classifier and not model.classifier:
        probed, *_ = probed_run(args.run, args.data_dir, device, args.threads)
        tell(f"fitting a classifier to the features of {len(probed.train):,} training images ...")
        tell(f"it classifies {100 * probed.probe.accuracy:.2f}% of {len(probed.test):,} test images correctly")
        model.classifier = probed.classifier
    note = " ".join((args.note or about.get("provenance", "")).split())
    exported.save(file, model, about["dataset"], about["step"], note, np.float16 if args.float16 else np.float32)
    tell(f"wrote {file}: {model.target_flat.data.size:,} parameters, {file.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
