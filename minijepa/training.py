"""The training loop: one step reads like the specification's section 8; around it, the run folder."""

import contextlib
import csv
import json
import math
import os
import signal
import time
import weakref
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minijepa import checkpoint, schedules
from minijepa.backend import rng, to_device
from minijepa.config import masker_settings
from minijepa.data import MultiBlockMasker, augment, draw_augmentation, normalise, training_images
from minijepa.ema import update_ema
from minijepa.errors import ConfigError, MinijepaError, TrainingError, tell
from minijepa.lanes import Lanes
from minijepa.models import IJEPA
from minijepa.monitors import Monitors
from minijepa.optim import AdamW, squared_norm
from minijepa.pictures import curves_picture, masks_picture

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

COLUMNS = tuple(
    "epoch step loss loss_per_dim lr weight_decay ema_momentum grad_norm images_per_s context_tokens target_tokens "
    "feature_std rank_me content_r2 knn seconds".split()
)

CURVES = {  # what curves.png shows
    "loss a dimension": "loss_per_dim", "content R2": "content_r2", "kNN accuracy": "knn", "RankMe": "rank_me",
    "feature deviation": "feature_std", "gradient norm": "grad_norm",
}  # fmt: skip
PICTURED = 6  # images in masks.png


class Trainer:
    """A model in training. Every random draw is a function of (seed, purpose, step), so a step can be repeated.

    ``dtype``: float32; float64 for tests that compare numbers.
    """

    def __init__(self, config, dataset, device="cpu", threads=1, dtype=np.float32):
        self.config, self.dataset, self.device = config, dataset, device
        images, labels, val_images, val_labels = training_images(config, dataset)
        self.images = to_device(images, device)
        self.data = {"dataset": dataset.name, "images": len(images), "crc32": zlib.crc32(np.ascontiguousarray(images))}
        self.model = IJEPA(config, config.seed, device, dtype)
        self.model.mean, self.model.std = dataset.mean, dataset.std
        self.optimizer = AdamW(
            self.model.flat.data, self.model.flat.grad, self.model.decayed, config.weight_decay,
            config.adam_beta1, config.adam_beta2, config.adam_eps,
        )  # fmt: skip
        self.masker = MultiBlockMasker(**masker_settings(config))
        self.lanes = Lanes(self.model, threads)
        self.batch_size = min(config.batch_size, len(images))
        self.steps_per_epoch = len(images) // self.batch_size  # a last short batch is dropped
        self.total_steps = self.steps_per_epoch * config.epochs
        self.monitors = Monitors(self.model, self.masker, images, labels, val_images, val_labels, threads)
        self.progress = checkpoint.Progress()

    def train_step(self, step):
        """One step of the specification's section 8. Returns what the epoch's row of metrics averages."""
        images, masks = self.batch(step)
        loss = self.lanes.gradients(images, masks)  # targets, predictions, loss, backward
        grad_norm = self._checked_norm(step, loss)
        self.optimizer.step(self.learning_rate(step))
        update_ema(self.model.target_flat.data, self.model.flat.data[: self.model.encoder_size], self.momentum(step))
        return {
            "loss": loss,
            "grad_norm": grad_norm,
            "context_tokens": len(masks.context_index) / len(masks),
            "target_tokens": len(masks.target_index) / len(masks),
        }

    def batch(self, step):
        """Normalised images (B, 3, S, S) and masks of a step."""
        seed, config = self.config.seed, self.config
        epoch, place = divmod(step, self.steps_per_epoch)
        order = rng(seed, "order of images", epoch).permutation(len(self.images))
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        draw = draw_augmentation(len(chosen), rng(seed, "augmentation", step), config.augment_flip, config.augment_crop)
        images = augment(self.images[to_device(chosen, self.device)], draw)  # as they are, if nothing is asked for
        masks = self.masker.sample(len(chosen), rng(seed, "masks", step))
        return normalise(images, self.model.mean, self.model.std).astype(self.model.dtype, copy=False), masks

    def learning_rate(self, step):
        c = self.config
        warmup = round(c.warmup_epochs * self.steps_per_epoch)
        return schedules.learning_rate(step, self.total_steps, warmup, c.base_lr, c.min_lr)

    def momentum(self, step):
        c = self.config
        return schedules.ema_momentum(step, self.total_steps, c.ema_momentum_start, c.ema_momentum_end)

    def _checked_norm(self, step, loss):
        """The gradient's norm; a TrainingError if it or the loss is not finite, or if a parameter gets no gradient."""
        norm = math.sqrt(squared_norm(self.model.flat.grad))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"step {step}: the loss is {loss} and the gradient's norm {norm}; the last checkpoint is from before: "
                "try a lower --lr or a longer warmup_epochs"
            )
        if step == 0:
            missing = [n for n, p in self.model.flat.parameters.items() if p not in self.lanes.reached]
            if missing:
                raise TrainingError(f"{len(missing)} parameters received no gradient, for one {missing[0]}")
        return norm


class Run:
    """A run folder: config.json, metrics.csv, checkpoint.npz, masks.png, curves.png."""

    def __init__(self, folder, trainer):
        self.folder, self.trainer = Path(folder), trainer
        self.checkpoint = self.folder / checkpoint.FILE
        self._unlock = lambda: None

    def create(self, about):
        """Make the folder, which must not exist, and write config.json and the first checkpoint."""
        try:
            self.folder.mkdir(parents=True)
            (self.folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")
        except FileExistsError:
            raise ConfigError(f"{self.folder} exists: go on with --resume, or choose another --run-dir") from None
        except OSError as error:
            raise ConfigError(f"can't make the run folder {self.folder}: {error.strerror}") from None
        self._lock()
        self._write_rows([])
        t = self.trainer
        images = t.images[:PICTURED]
        masks = t.masker.sample(len(images), rng(t.config.seed, "masks", 0))
        masks_picture(images, masks, t.config.patch_size, self.folder / "masks.png")
        self.save()

    def resume(self):
        """Take the run up where its checkpoint stands; rows of metrics from after it are dropped."""
        self._lock()
        t = self.trainer
        try:
            t.progress = checkpoint.restore(self.checkpoint, t.model, t.optimizer, t.data)
            done = t.progress.step // t.steps_per_epoch
            rows = self.rows()[:done]  # a row behind these may be cut off in the middle
            if len(rows) < done or any(None in row or None in row.values() for row in rows):
                raise ConfigError(f"{self.folder}/metrics.csv is damaged: it lacks rows of the {done} epochs done")
            self._write_rows(rows)
        except MinijepaError:
            self._unlock()
            raise

    def _lock(self):
        """Keep other processes from training here: a lock on config.json, which ends with ``train`` or the process."""
        if fcntl is None:
            return
        file = os.open(self.folder / "config.json", os.O_RDONLY)
        self._unlock = weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another process is training in {self.folder}: wait for it, or stop it") from None

    def rows(self):
        """The rows of metrics.csv as dicts of strings. Raises ConfigError for a file that is not this program's."""
        path = self.folder / "metrics.csv"
        try:
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                rows = list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{path} can't be read ({getattr(error, 'strerror', error)})") from None
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{path} has other columns than this program writes")
        return rows

    def _write_rows(self, rows):
        with checkpoint.replaced(self.folder / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def _append(self, row):
        with open(self.folder / "metrics.csv", "a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)

    def draw_curves(self):
        """curves.png: the columns of metrics.csv that tell how the run is doing."""
        rows = self.rows()
        columns = {title: [float(row[name] or "nan") for row in rows] for title, name in CURVES.items()}
        curves_picture(columns, [int(row["epoch"]) for row in rows], self.folder / "curves.png", self.folder.name)

    def save(self):
        t = self.trainer
        checkpoint.save(self.checkpoint, t.model, t.optimizer, t.progress, t.data)

    def train(self, say=tell):
        """Train to the end of the last epoch, or until interrupted. Returns the signal's number, 0 at the end."""
        t = self.trainer
        clock = Clock(t)
        with (
            contextlib.ExitStack() as at_the_end,
            Interruptible() as interrupted,
            tqdm(total=t.total_steps, initial=t.progress.step, unit="step", disable=None, dynamic_ncols=True) as bar,
        ):
            at_the_end.callback(self._unlock)
            while t.progress.step < t.total_steps:
                step = t.progress.step
                for name, value in t.train_step(step).items():
                    t.progress.sums[name] = t.progress.sums.get(name, 0.0) + value
                t.progress.step += 1
                clock.tick(lambda text: _say(bar, say, text))
                bar.update()
                if t.progress.step % 10 == 0:
                    bar.set_postfix(self._postfix(clock), refresh=False)
                if t.progress.step % t.steps_per_epoch == 0:
                    row = self._epoch_row(step, clock)
                    t.progress.sums = {}
                    self._append(row)
                    self.save()  # before anything of less importance can fail
                    self._keep(row["epoch"])
                    _say(bar, say, _epoch_line(row, t.config.epochs))
                    self.draw_curves()
                    clock.start_epoch()
                if interrupted.signal:
                    self.save()
                    return interrupted.signal
        return 0

    def _postfix(self, clock):
        t = self.trainer
        done = (t.progress.step - 1) % t.steps_per_epoch + 1
        return {"loss": f"{t.progress.sums['loss'] / done:.3f}", "img/s": f"{clock.images_per_s():.0f}"}

    def _epoch_row(self, step, clock):
        """The row of metrics of the epoch that ends with ``step``."""
        t = self.trainer
        epoch = (step + 1) // t.steps_per_epoch
        mean = {name: total / t.steps_per_epoch for name, total in t.progress.sums.items()}
        per_dim = t.config.encoder_embed_dim if t.config.loss == "l2" else 1
        speed, seconds = clock.images_per_s(), clock.seconds()
        every = t.config.knn_every
        row = {
            "epoch": epoch, "step": step + 1, **mean, "loss_per_dim": mean["loss"] / per_dim,
            "lr": t.learning_rate(step), "weight_decay": t.config.weight_decay, "ema_momentum": t.momentum(step),
            "images_per_s": speed, "seconds": seconds, **t.monitors.collapse(),
            "knn": t.monitors.knn() if every and (epoch % every == 0 or epoch == t.config.epochs) else None,
        }  # fmt: skip
        return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}

    def _keep(self, epoch):
        every = self.trainer.config.keep_every
        if every and epoch % every == 0:
            content = self.checkpoint.read_bytes()
            with checkpoint.replaced(self.folder / f"checkpoint-{epoch:04d}.npz") as file:
                file.write(content)


def _say(bar, say, text):
    """A line above the progress bar, or a plain line where there is no bar."""
    bar.clear()
    say(text)


def _epoch_line(row, epochs):
    text = (
        f"epoch {row['epoch']:>3}/{epochs}  loss {float(row['loss']):.3f}"
        f" ({float(row['loss_per_dim']):.3f} a dimension)"
        f"  {float(row['images_per_s']):.0f} img/s  std {float(row['feature_std']):.3f}"
        f"  RankMe {float(row['rank_me']):.1f}  content R² {float(row['content_r2']):+.3f}"
    )
    return text + (f"  kNN {100 * float(row['knn']):.1f}%" if row["knn"] is not None else "")


class Clock:
    """Speed of an epoch, and one estimate of the whole run's time once a few steps were seen."""

    ESTIMATE_AFTER = 6  # steps, the first of which warms up

    def __init__(self, trainer):
        self.trainer = trainer
        self.started = self.first_step_done = self.last_step_done = time.perf_counter()
        self.steps = self.epoch_steps = 0

    def tick(self, say):
        self.steps += 1
        self.epoch_steps += 1
        self.last_step_done = time.perf_counter()
        if self.steps == 1:
            self.first_step_done = self.last_step_done
        if self.steps == self.ESTIMATE_AFTER:
            say(self._estimate())

    def start_epoch(self):
        """Measure from here; what an epoch's end takes (monitors, pictures, the checkpoint) is not training time."""
        self.started, self.epoch_steps = time.perf_counter(), 0
        self.first_step_done += self.started - self.last_step_done

    def seconds(self):
        return time.perf_counter() - self.started

    def images_per_s(self):
        return self.epoch_steps * self.trainer.batch_size / self.seconds()

    def _estimate(self):
        t = self.trainer
        per_step = (time.perf_counter() - self.first_step_done) / (self.ESTIMATE_AFTER - 1)
        seconds = per_step * (t.total_steps - t.progress.step)
        text = f"about {duration(seconds)} for {t.total_steps - t.progress.step} more steps, evaluations apart"
        if t.device == "cpu" and seconds > 2 * 3600:
            text += "; for a result in half an hour: --preset laptop, and with a GPU: --device cuda"
        return text


def duration(seconds):
    """``"45 s"``, ``"12 min"``, ``"3.2 h"``"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Interruptible:
    """While inside, SIGINT and SIGTERM are noted in ``signal`` instead of raised; a second one ends the program."""

    def __enter__(self):
        self.signal = 0
        self.previous = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not the main thread: then signals are not ours to handle
                self.previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def read_run(folder):
    """config.json of a run folder. Raises ConfigError in one line."""
    file = Path(folder) / "config.json"
    try:
        about = json.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"no run at {folder}: config.json: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{file} is not JSON: the run can't be resumed") from None
    if not (isinstance(about, dict) and isinstance(about.get("config"), dict) and "dataset" in about):
        raise ConfigError(f"{file} lacks the run's config or dataset: the run can't be resumed")
    return about
