#!/usr/bin/env python3
"""Probe the features of a run: python probe.py runs/NAME [--split val|test] [--pictures] [--images FOLDER] ..."""

import argparse
import sys

from minijepa import backend  # first: it holds BLAS to one thread before NumPy is loaded
from minijepa.backend.threads import at_most, worker_threads
from minijepa.cli import add_machine, exit_status, parse, path, tell
from minijepa.data import read_folder
from minijepa.errors import ConfigError
from minijepa.evaluation.evaluate import ProbedEncoder, evaluate, opened, probed_run, suffix_of
from minijepa.evaluation.gallery import draw_all, draw_own
from minijepa.training.metrics import read_metrics
from minijepa.training.report import write_report


def parser():
    p = argparse.ArgumentParser(
        prog="probe.py",
        description="Linear probe and kNN of a run's frozen encoder, an untrained encoder and raw pixels.",
    )
    p.add_argument("run", type=path, help="a run folder, a checkpoint file, or an exported encoder")
    add_machine(p, data="where CIFAR-10 is")
    p.add_argument(
        "--split", choices=("val", "test"), default="test",
        help="test: the final figure; val: images that the run held back (default: test)",
    )  # fmt: skip
    p.add_argument("--encoder", choices=("target", "context"), default="target", help="default: target")
    p.add_argument(
        "--quick", action="store_true",
        help="a first impression, from one image in ten: half a minute on 2 cores; written next to the full results",
    )  # fmt: skip
    p.add_argument(
        "--blocks", type=int, default=1, metavar="N",
        help="use the features after each of the last N blocks, side by side (DINO's evaluation: 4; default: 1)",
    )  # fmt: skip
    p.add_argument("--pictures", action="store_true", help="draw all pictures of docs/pictures.md too")
    p.add_argument(
        "--images", type=path, metavar="FOLDER",
        help="look at your own pictures, in own_images.png; without --pictures, this replaces the evaluation, and an "
        "exported encoder with a classifier does not need CIFAR-10",
    )  # fmt: skip
    return p


def main(argv=None):
    args = parse(parser(), argv)
    return exit_status("probe.py", lambda: run(args))


def run(args):
    with at_most(worker_threads(args.threads)):
        return probe(args)


def probe(args):
    if args.blocks != 1 and (args.pictures or args.images is not None):
        raise ConfigError("--blocks is for the figures: leave out --pictures and --images, or --blocks")
    device = backend.resolve_device(args.device)
    if args.images is not None and not args.pictures and (path := look(args, device)):
        tell(f"wrote {path}")
        return 0
    probed, about, images = probed_run(
        args.run, args.data_dir, device, args.threads, args.split, args.encoder, args.quick, args.blocks
    )
    own = own_pictures(args.images, probed.model) if args.images is not None else None
    has_metrics = (probed.folder / "metrics.csv").exists()  # a checkpoint that was copied away has none
    rows = read_metrics(probed.folder) if args.pictures and has_metrics else None
    if args.pictures or own is None:
        evaluate(probed, about)
    if args.pictures:
        tell("wrote " + ", ".join(str(path) for path in draw_all(probed, images, rows)))
    if own is not None:
        tell(f"wrote {draw_own(probed, own)}")
    if report := write_report(probed.folder):
        tell(f"wrote {report}: open it in a browser")
    return 0


def own_pictures(folder, model):
    """The pictures of a folder as the model takes them; names the unreadable ones."""
    own = read_folder(folder, model.config.image_size)
    if own.skipped:
        tell(own.told())
    return own


def look(args, device):
    """Draw own_images.png without a data set, if the model has a classifier; return its path, or None."""
    file, about, model = opened(args.run, device, args.encoder)
    if not model.classifier:
        return None
    own = own_pictures(args.images, model)
    probed = ProbedEncoder(
        model, model.classifier.classes, own.images, None, own.images, None, kind="own", step=about["step"],
        file=file, threads=args.threads, suffix=suffix_of(file, about),
    )  # fmt: skip
    return draw_own(probed, own)


if __name__ == "__main__":
    sys.exit(main())
