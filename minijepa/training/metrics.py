"""A run's progress: an epoch's sums, rows of metrics, and the pictures that need no features."""

import csv

import numpy as np

from minijepa.backend import is_array, rng, to_numpy, xp_of
from minijepa.cli import counted
from minijepa.data import MultiBlockMasker
from minijepa.errors import ConfigError
from minijepa.files import open_plain, read_json
from minijepa.pictures import Curves, curves_picture, masks_picture
from minijepa.pictures.canvas import TITLE, shortened
from minijepa.pictures.curves import HUGE
from minijepa.training.steps import read_steps

COLUMNS = tuple(
    "epoch step loss loss_per_dim lr weight_decay ema_momentum grad_norm images_per_s context_tokens target_tokens "
    "feature_std rank_me content_r2 knn seconds".split()
)

CURVES = {  # the panels of curves.png and report.html: {title: (column of metrics.csv, what it tells)}
    "loss a dimension": ("loss_per_dim", "The targets move, so by itself it says little. Pale: every step."),
    "content R2": ("content_r2", "0: the predictor knows positions alone. It should stay well above."),
    "kNN accuracy": ("knn", "Of 20 neighbours among training images. It should rise."),
    "RankMe": ("rank_me", "Dimensions that the features use. Towards 1: collapse."),
    "feature deviation": ("feature_std", "Over images. Towards 0: collapse."),
    "gradient norm": ("grad_norm", "Pale: every step. Spikes call for a lower rate."),
    "learning rate": ("lr", "Warm-up, then a cosine."),
    "EMA momentum": ("ema_momentum", "Of the target encoder; 1: it stands still."),
    "images a second": ("images_per_s", "Of training alone."),
}
PICTURED = 6  # images in masks.png


def on_host(results):
    """[(step, {name: value})] with the losses and norms of a GPU, arrays there, read in one go."""
    if results and is_array(results[0][1]["loss"]):
        scalars = [values[name] for _, values in results for name in ("loss", "grad_norm")]
        fetched = to_numpy(xp_of(scalars[0]).stack(scalars)).reshape(-1, 2).tolist()  # a single sync
        for (_, values), (loss, norm) in zip(results, fetched):
            values.update(loss=loss, grad_norm=norm)
    return results


def epoch_row(trainer, step, clock):
    """The row of metrics.csv of the epoch that ends with ``step``."""
    t, every = trainer, trainer.config.knn_every
    epoch = (step + 1) // t.steps_per_epoch
    mean = {name: total / t.steps_per_epoch for name, total in t.progress.sums.items()}
    speed, seconds = clock.images_per_s(), clock.seconds()
    row = {
        "epoch": epoch, "step": step + 1, **mean, "loss_per_dim": t.model.loss_per_dim(mean["loss"]),
        "lr": t.learning_rate(step), "weight_decay": t.config.weight_decay, "ema_momentum": t.momentum(step),
        "images_per_s": speed, "seconds": seconds, **t.monitors.collapse(),
        "knn": t.monitors.knn() if every and (epoch % every == 0 or epoch == t.config.epochs) else None,
    }  # fmt: skip
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}


def epoch_line(row, epochs):
    """A row of metrics.csv, not yet text, as the line that is printed at an epoch's end."""
    text = (
        f"epoch {row['epoch']:>3}/{epochs}  loss {float(row['loss']):.3f}"
        f" ({float(row['loss_per_dim']):.3f} a dimension)"
        f"  {float(row['images_per_s']):.0f} img/s  std {float(row['feature_std']):.3f}"
        f"  RankMe {float(row['rank_me']):.1f}  content R² {float(row['content_r2']):+.3f}"
    )
    return text + (f"  kNN {100 * float(row['knn']):.1f}%" if row["knn"] is not None else "")


def read_metrics(folder, epochs=None):
    """The rows of metrics.csv as dicts of strings, all of them or the first ``epochs``.

    Raises ConfigError if the file is not this program's, or lacks rows, or has wrong ones.
    """
    path = folder / "metrics.csv"
    try:
        with open_plain(path, newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames, list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} can't be read ({getattr(error, 'strerror', error)})") from None
    if tuple(columns or ()) != COLUMNS:
        raise ConfigError(f"{path} does not have the columns that this program writes")
    rows = rows[:epochs]
    if len(rows) < (epochs or 0):
        raise ConfigError(f"{path} is damaged: it lacks rows of the {counted(epochs, 'epoch')} done")
    for epoch, row in enumerate(rows, start=1):
        if not _is_whole(epoch, row):
            raise ConfigError(f"{path} is damaged: its row {epoch} is not that of epoch {epoch}")
    return rows


def _is_whole(epoch, row):
    """Whether a row is of this epoch, with a number in every column (the kNN is not measured each time) and no more."""
    try:
        for name, value in row.items():
            float("nan" if name == "knn" and value == "" else value)
        return row["epoch"] == str(epoch) and int(row["step"]) > 0
    except (TypeError, ValueError):  # None: a column is missing; a list: there are too many
        return False


def curves_of(folder, rows, name=""):
    """The Curves of a run folder, from its metrics (``rows``), steps.csv and config.json."""
    columns = {title: np.array([float(row[name] or "nan") for row in rows]) for title, (name, _) in CURVES.items()}
    return Curves(columns, np.arange(1, len(rows) + 1), _fine(folder, rows), _levels(folder), name)


def _fine(folder, rows):
    """{panel: (epochs, numbers)} of steps.csv; {} without it."""
    try:
        steps = np.array(read_steps(folder, int(rows[-1]["step"])) if rows else [], float)
    except ConfigError:
        return {}
    if not len(steps):
        return {}
    step, loss, norm, rate = steps.T
    first, x = {name: float(rows[0][name]) for name in ("step", "loss", "loss_per_dim")}, step / float(rows[0]["step"])
    per_dim = first["loss_per_dim"] / first["loss"] if first["loss"] else 1
    return {"loss a dimension": (x, loss * per_dim), "gradient norm": (x, norm), "learning rate": (x, rate)}


def _levels(folder):
    """{panel: {name: number}}: 0, chance, and the untrained network's figures from config.json."""
    levels = {"content R2": {"positions alone": 0.0}}
    untrained = read_json(folder / "config.json").get("untrained", {})
    try:
        found = {name: float(value) for name, value in untrained.items() if abs(value) < HUGE}
    except (ArithmeticError, TypeError, AttributeError):
        return levels
    for title, (name, _) in CURVES.items():
        if name in found:
            levels.setdefault(title, {})["untrained"] = found[name]
    if "chance" in found:
        levels.setdefault("kNN accuracy", {})["chance"] = found["chance"]
    return levels


LAST = "the blue number is the last value; "  # of a picture of one run
CAPTION = (
    f"Each point is an epoch; {LAST}pale: every step. The loss alone says little, as its "
    "targets move: watch content R2 (above 0: the predictor knows more than positions), kNN (features tell classes "
    "apart), RankMe and deviation (falling to 1 and 0: collapse)."
)


def draw_curves(folder, rows):
    """curves.png: the columns of metrics.csv that show how the run is doing, and steps.csv."""
    title = shortened(f"Training of {folder.resolve().name}", 800, TITLE)
    curves_picture(curves_of(folder, rows), folder / "curves.png", title, CAPTION)


def draw_masks(path, config, images):
    """masks.png: the first images, with masks drawn like those of training."""
    images = images[:PICTURED]
    masks = MultiBlockMasker.of(config).sample(len(images), rng(config.seed, "masks", 0))
    masks_picture(images, masks, config.patch_size, path)
