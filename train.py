#!/usr/bin/env python3
"""Pretrain I-JEPA: python train.py [--preset cifar10|best|laptop|smoke] [--device auto|cpu|cuda] ..."""

import argparse
import dataclasses
import sys
from pathlib import Path

from minijepa import backend  # first: it holds BLAS to one thread before NumPy is loaded
from minijepa.backend.threads import at_most
from minijepa.cli import add_machine, counted, exit_status, parse, path, tell
from minijepa.config import MEASURED, PRESETS, Config, parse_changes
from minijepa.data import DATASETS, has_some_cifar10, load_dataset
from minijepa.errors import ConfigError
from minijepa.evaluation.gallery import draw_features, gallery_of_trainer
from minijepa.files import shell_word
from minijepa.training import mpi
from minijepa.training.lanes import LANES
from minijepa.training.provenance import bits_depend_on
from minijepa.training.report import write_report
from minijepa.training.run import FolderTaken, Helper, Run, check_free, read_run
from minijepa.training.trainer import Trainer


def parser():
    p = argparse.ArgumentParser(
        prog="train.py", description="Pretrain I-JEPA on CIFAR-10, without labels.", epilog=table_of_presets(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--preset", choices=PRESETS, help="all settings at once (default: cifar10, the specification's)")
    add_machine(p, data="where CIFAR-10 is or goes")
    p.add_argument("--dataset", choices=DATASETS, help="default: cifar10; shapes is built in")
    run_dir = "a new folder for the run (default: runs/PRESET, numbered)"
    p.add_argument("--run-dir", type=path, metavar="DIR", help=run_dir)
    p.add_argument("--resume", action="store_true", help="continue the run in --run-dir")
    p.add_argument("--epochs", metavar="N", help="passes over the training set")
    p.add_argument("--batch-size", metavar="N", help="images a step")
    p.add_argument("--lr", metavar="X", help="the learning rate after warm-up")
    p.add_argument("--seed", metavar="N", help="of weights, order, masks and augmentation")
    p.add_argument("--mpi", action="store_true", help="share the run: mpiexec -n K python train.py --mpi (docs/mpi.md)")
    p.add_argument("--precision", choices=("tf32", "fp32"), help="of matrix products on a GPU (default: tf32)")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="any field of minijepa/config.py, for example --set target_norm=layer_norm; may be repeated",
    )  # fmt: skip
    return p


def table_of_presets():
    """For --help."""
    line = "  {:<9}{:<21}{:>6}  {:<12}{}".format
    lines = [line("preset", "encoder", "epochs", "2 CPU cores", "linear probe, test images")]
    for name, (time, accuracy) in MEASURED.items():
        c = Config.preset(name)
        encoder = f"{c.encoder_embed_dim} wide, {c.encoder_depth} blocks"
        lines.append(line(name, encoder, c.epochs, time, accuracy))
    return "\n".join(lines)


def settings(args):
    """The config fields that the command line sets."""
    flags = [("--epochs", "epochs", args.epochs), ("--batch-size", "batch_size", args.batch_size),
             ("--lr", "base_lr", args.lr), ("--seed", "seed", args.seed)]  # fmt: skip
    given = [(f"{flag} {value}", f"{name}={value}") for flag, name, value in flags if value is not None]
    return parse_changes(given + [(f"--set {text}", text) for text in args.changes])


def choose_dataset(args, preset):
    """The dataset's name; only ``smoke``, which downloads nothing, may replace CIFAR-10, and says so."""
    if args.dataset:
        return args.dataset
    if preset == "smoke" and not has_some_cifar10(args.data_dir):
        tell(f"no CIFAR-10 in {args.data_dir}/: the smoke run uses the built-in shapes instead")
        return "shapes"
    return "cifar10"


def fitted(config, data, preset, changes):
    """``config`` adapted to the number of images; says what changes."""
    left = len(data.train_labels) - config.val_size
    images = min(left, config.max_train_images or left)
    if config.max_train_images > left > 0:
        tell(f"max_train_images is {config.max_train_images:,}, but there are only {left:,} training images")
    if config.batch_size > images > 0:
        tell(f"batches have {counted(images, 'image')}, not {config.batch_size:,}: there are no more")
        config = dataclasses.replace(config, batch_size=images)
    if config.warmup_epochs != changes.get("warmup_epochs", preset.warmup_epochs):
        tell(
            f"the warm-up is {config.warmup_epochs:g} of {counted(config.epochs, 'epoch')}, the preset's share: "
            "--set warmup_epochs=X changes it"
        )
    return config


def free_folder(preset):
    """runs/PRESET, or runs/PRESET-2, -3 ... if that is taken."""
    number, folder = 1, Path("runs") / preset
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{preset}-{number}"
    return folder


def create(run, about, preset):
    """Create a new run and return its folder: with a ``preset``, the next free one if this was taken meanwhile."""
    while True:
        try:
            run.create(about)
            return run.folder
        except FolderTaken:
            if not preset:
                raise
            run.folder = free_folder(preset)


def prepare(args, threads, ranks):
    """The Run. Everything that can be wrong is found here, before anything is trained."""
    device = backend.resolve_device("cpu" if args.mpi else args.device)
    run, about = (resumed_run if args.resume else new_run)(args, device, threads, ranks)
    trainer = run.trainer
    trainer.share()
    workers = counted(min(threads, -(-LANES // ranks.size)), "worker")
    tell(
        f"{run.folder}: {about['dataset']}, {counted(len(trainer.images), 'image')}, "
        f"{counted(trainer.config.epochs, 'epoch')} of {counted(trainer.steps_per_epoch, 'step')}, "
        f"{trainer.model.num_parameters():,} trained parameters, on {device} "
        + (f"with {workers}" if device == "cpu" else f"in {about.get('precision', 'tf32')}")
        + (f" in each of {ranks.size} processes" if ranks.size > 1 else "")
    )
    return run


def new_run(args, device, threads, ranks):
    """(the Run, its config.json), in a new folder."""
    name, changes = args.preset or "cifar10", settings(args)
    config, dataset = Config.preset(name, **changes), ranks.first(lambda: choose_dataset(args, name))
    if args.run_dir:
        ranks.first(lambda: check_free(args.run_dir))
    folder = Path(args.run_dir) if args.run_dir else free_folder(name)
    about = {"preset": name, "dataset": dataset, "precision": args.precision or "tf32"}
    data = ranks.each(lambda: load_dataset(dataset, args.data_dir))
    config = ranks.first(lambda: fitted(config, data, Config.preset(name), changes))
    about["config"] = config.to_dict()
    run = run_of(folder, config, data, about, device, threads, ranks)
    run.folder = ranks.first(lambda: create(run, about, None if args.run_dir else name))
    return run, about


def resumed_run(args, device, threads, ranks):
    """(the Run in --run-dir, its config.json), as its checkpoint left it."""
    if not args.run_dir:
        raise ConfigError("--resume needs the run's folder: --run-dir runs/NAME")
    if args.preset or args.dataset or args.precision or settings(args):
        takes = "it takes --device, --data-dir, --threads, --mpi"
        raise ConfigError(f"--resume continues with the run's own settings: {takes}")
    about = ranks.first(lambda: read_run(args.run_dir))
    config = Config.from_dict(about["config"])
    data = ranks.each(lambda: load_dataset(about["dataset"], args.data_dir))
    run = run_of(args.run_dir, config, data, about, device, threads, ranks)
    ranks.first(run.resume)
    return run, about


def run_of(folder, config, data, about, device, threads, ranks):
    """The Run of a new trainer, which must be the same on all ranks."""
    if device == "cuda":
        backend.set_precision(about.get("precision", "tf32"))
    trainer = ranks.each(lambda: Trainer(config, data, device, threads, ranks=ranks))
    if text := ranks.difference(lambda: trainer.data | bits_depend_on()):
        raise ConfigError(f"all ranks need the same images, program, packages and BLAS kernel, but {text}: docs/mpi.md")
    return (Helper if ranks.rank else Run)(folder, trainer)


def main(argv=None):
    with mpi.first_prints():
        args = parse(parser(), argv)
    return exit_status("train.py", lambda: train(args))


def train(args):
    """Train, to the end or an interruption; the exit status."""
    with mpi.joined(args.mpi, args.device) as ranks:
        threads = ranks.threads(args.threads)
        with at_most(threads):  # the monitors and pictures too
            run = prepare(args, threads, ranks)
            stopped = run.train(then=lambda: finish(run))
    folder = shell_word(run.folder)
    data = "" if args.data_dir == "data" else f" --data-dir {shell_word(args.data_dir)}"
    if stopped:
        tell(f"interrupted at step {run.trainer.progress.step}; saved. To continue:")
        program = f"mpiexec -n {ranks.size} python train.py --mpi" if args.mpi else "python train.py"
        tell(f"    {program} --run-dir {folder} --resume{data}")
        return 128 + stopped
    tell(f"done: {run.folder}/ holds report.html, checkpoint.npz and pictures. How good are the features?")
    tell(f"    python probe.py {folder}{data}")
    return 0


def finish(run):
    """What is drawn and written when the last epoch has ended."""
    draw_features(gallery_of_trainer(run))
    write_report(run.folder)


if __name__ == "__main__":
    sys.exit(main())
