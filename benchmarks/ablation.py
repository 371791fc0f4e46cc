#!/usr/bin/env python3
"""Which settings help? Trains each with several seeds, all for the same number of epochs, and probes held-back images.

    python benchmarks/ablation.py base "raw targets" --seeds 0 --set epochs=6 --set warmup_epochs=0.5 --out runs/six
    python benchmarks/ablation.py --base best --jobs 1 --set epochs=20 --out runs/twenty
    python benchmarks/ablation.py                 # every setting of SETTINGS, three seeds: days on a CPU

The probe is fitted to the 45,000 images of the training and measured on 5,000 that are held back; the test set is never
used. A finished run is not repeated and an interrupted one is resumed, so the same command can be given again until all
are done. If a run fails (a loss that is not finite), the others go on, and the exit status is 1. Writes
OUT/ablation.csv, a row for each run in OUT, and prints mean and range over the seeds for the settings given.
"""

import argparse
import csv
import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from minijepa.backend import resolve_device  # noqa: E402
from minijepa.backend.threads import at_most  # noqa: E402
from minijepa.cli import exit_status, path, tell  # noqa: E402
from minijepa.config import Config, parse_changes  # noqa: E402
from minijepa.data import load_dataset  # noqa: E402
from minijepa.errors import ConfigError, TrainingError  # noqa: E402
from minijepa.evaluation.evaluate import probed_run  # noqa: E402
from minijepa.evaluation.neighbours import knn_accuracy  # noqa: E402
from minijepa.files import replaced  # noqa: E402
from minijepa.training import checkpoint  # noqa: E402
from minijepa.training.metrics import read_metrics  # noqa: E402
from minijepa.training.run import read_run  # noqa: E402

OF_SPECIFICATION = (  # all but the network, the batches and the rate
    "patch_embed_gain init_std augment_flip augment_crop augment_scale target_norm target_scale context_scale "
    "ema_momentum_start".split()
)
SETTINGS = {  # what differs from the base
    "base": {},
    "specification": {name: getattr(Config(), name) for name in OF_SPECIFICATION},
    # `laptop` with one part removed at a time
    "weights from 0.02": dict(init_std=0.02),
    "patch gain 1": dict(patch_embed_gain=1),
    "no augmentation": dict(augment_flip=False, augment_crop=0, augment_scale=(1, 1)),
    "raw targets": dict(target_norm="none"),
    "wide masks": dict(target_scale=(0.15, 0.25), context_scale=(0.75, 0.95)),  # the specification's
    # More of something, or something else
    "EMA from 0.98": dict(ema_momentum_start=0.98),
    "crops from 0.3": dict(augment_scale=(0.3, 1.0)),
    "smooth-L1 loss": dict(loss="smooth_l1"),
    "rate x 0.5": dict(base_lr=0.5),  # times the base's
    "rate x 2": dict(base_lr=2),
    "two target blocks": dict(num_target_blocks=2),
    # Networks
    "128 wide": dict(encoder_embed_dim=128, encoder_num_heads=4),
    "256 wide": dict(encoder_embed_dim=256, encoder_num_heads=8),
    "2 deep": dict(encoder_depth=2),
    "4 deep": dict(encoder_depth=4),
    "predictor of 96": dict(predictor_embed_dim=96, predictor_num_heads=6),
}
HELD_BACK = 5000  # training images
COLUMNS = "setting seed epochs step linear_probe knn feature_std rank_me content_r2 loss_per_dim minutes".split()


def parser():
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("settings", nargs="*", metavar="SETTING", help=f"default: all of {'; '.join(SETTINGS)}")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--base", default="laptop", help="the preset that the settings change (default: laptop)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changed in all runs")
    p.add_argument("--jobs", type=int, default=2, help="simultaneous runs (default: 2)")
    p.add_argument("--threads", type=int, default=1, help="of each run (default: 1)")
    p.add_argument("--device", default="cpu")
    p.add_argument("--data-dir", type=path, default="data")
    p.add_argument("--out", type=path, default="runs/ablation", help="a folder for the runs and the table")
    return p


def configs(args):
    """{(setting, seed): its Config}. Raises ConfigError."""
    changes = parse_changes((f"--set {text}", text) for text in args.set)
    for name, instead in {"val_size": f"it is always {HELD_BACK:,}", "seed": "give --seeds"}.items():
        if name in changes:
            raise ConfigError(f"--set {name}={changes[name]}: {instead}")
    base = Config.preset(args.base, **changes, val_size=HELD_BACK)
    found = {}
    for seed in args.seeds:
        for setting in args.settings or SETTINGS:
            if setting not in SETTINGS:
                raise ConfigError(f"no setting {setting!r}: choose among {'; '.join(SETTINGS)}")
            changes = dict(SETTINGS[setting], seed=seed)
            if "base_lr" in changes:
                changes["base_lr"] *= base.base_lr
            found[setting, seed] = dataclasses.replace(base, **changes)
    return found


def folder_of(args, setting, seed):
    return Path(args.out) / f"{setting.replace(' ', '-')}-seed{seed}"


def train(args, folder, config):
    """Train one run to its end, or resume it."""
    command = [sys.executable, str(ROOT / "train.py"), "--run-dir", str(folder), "--threads", str(args.threads)]
    command += ["--device", args.device, "--data-dir", args.data_dir]
    if (folder / checkpoint.FILE).exists():
        command.append("--resume")
    else:
        preset = Config.preset(args.base).to_dict()
        changes = {name: value for name, value in config.to_dict().items() if value != preset[name]}
        command += ["--preset", args.base, *(f"--set={name}={value}" for name, value in changes.items())]
    with open(f"{folder}.log", "a") as log:
        if subprocess.run(command, stdout=log, stderr=log).returncode:
            raise TrainingError(f"training failed: see {folder}.log")


def probed(args, folder):
    """The results of a trained run: the columns after ``setting`` and ``seed``."""
    s, about, _ = probed_run(folder, args.data_dir, args.device, args.threads, "val")
    config, rows = s.model.config, read_metrics(folder)
    images = about["step"] // len(rows) * config.batch_size  # of an epoch
    return {
        "epochs": config.epochs, "step": about["step"], "linear_probe": s.probe.accuracy,
        "knn": knn_accuracy(s.features, s.train_y, s.test_features, s.test_y, len(s.classes)),
        **{name: float(rows[-1][name]) for name in ("feature_std", "rank_me", "content_r2", "loss_per_dim")},
        # not the sum of the seconds, which an interrupted epoch counts from its resumption
        "minutes": round(sum(images / float(row["images_per_s"]) for row in rows) / 60, 1),
    }  # fmt: skip


def result(args, setting, seed, config):
    """The row of one run, from its folder if it was probed before; None if its training failed."""
    folder = folder_of(args, setting, seed)
    file = folder / "ablation.json"
    if file.exists():
        return json.loads(file.read_text())
    try:
        train(args, folder, config)
    except TrainingError as error:  # the others go on
        tell(f"{setting}, seed {seed}: {error}")
        return None
    row = {"setting": setting, "seed": seed, **probed(args, folder)}
    with replaced(file, "w") as written:
        written.write(json.dumps(row) + "\n")
    tell(f"{setting}, seed {seed}: linear probe {100 * row['linear_probe']:.2f}%, kNN {100 * row['knn']:.2f}%")
    return row


def table(rows):
    """Mean and range over the seeds, the best first, as Markdown."""
    lines = ["| setting | seeds | linear probe, % | range | kNN, % | range |", "|---|---|---|---|---|---|"]
    groups = {}
    for row in rows:
        groups.setdefault(row["setting"], []).append(row)

    def spread(group, name):
        values = [100 * row[name] for row in group]
        return sum(values) / len(values), f"{min(values):.2f} to {max(values):.2f}"

    for setting, group in sorted(groups.items(), key=lambda item: -spread(item[1], "linear_probe")[0]):
        (probe, probe_range), (knn, knn_range) = spread(group, "linear_probe"), spread(group, "knn")
        lines.append(f"| {setting} | {len(group)} | {probe:.2f} | {probe_range} | {knn:.2f} | {knn_range} |")
    return "\n".join(lines)


def main(args):
    args.device = resolve_device(args.device)
    if min(args.jobs, args.threads) < 1:
        raise ConfigError(f"--jobs {args.jobs}, --threads {args.threads}: at least 1")
    asked = configs(args)
    dataset = load_dataset("cifar10", args.data_dir)  # downloaded before anything is trained
    left = len(dataset.train_labels) - HELD_BACK
    for job, config in asked.items():
        folder = folder_of(args, *job)
        batch_size = min(config.batch_size, left, config.max_train_images or left)  # as train.py lowers it
        wanted = dataclasses.replace(config, batch_size=batch_size)
        if folder.exists() and Config.from_dict(read_run(folder)["config"]) != wanted:
            raise ConfigError(f"{folder} is a run with other settings: give another folder with --out")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with at_most(args.threads), ThreadPoolExecutor(args.jobs) as pool:
        found = list(pool.map(lambda job: result(args, *job, asked[job]), asked))
    with replaced(out / "ablation.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()  # and the rows of all commands
        writer.writerows(json.loads(row.read_text()) for row in sorted(out.glob("*/ablation.json")))
    rows = [row for row in found if row]
    tell(table(rows))  # of this command alone: their epochs are the same
    return int(len(rows) < len(found))


if __name__ == "__main__":
    args = parser().parse_args()
    sys.exit(exit_status("ablation.py", lambda: main(args)))
