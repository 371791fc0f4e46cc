"""A run: the folder that training writes to, its progress, interruptions, and resuming."""

import contextlib
import csv
import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minijepa.cli import Interruptible, tell
from minijepa.errors import CheckpointError, ConfigError, DataError, MinijepaError, TrainingError
from minijepa.evaluation.monitors import FEWEST, warning
from minijepa.files import new_folder, open_plain, remove_spares, replaced, shell_word
from minijepa.training import checkpoint, provenance
from minijepa.training.clock import Clock
from minijepa.training.lock import Lock
from minijepa.training.metrics import COLUMNS, draw_curves, draw_masks, epoch_line, epoch_row, read_metrics
from minijepa.training.steps import append_steps, read_steps, start_steps
from minijepa.training.trainer import REMEDY

PAUSE = 10  # seconds in which no further epoch is saved and drawn: on a GPU, that takes a good part of an epoch's time


class FolderTaken(ConfigError):
    """A new run can't use this folder: something is there."""


def check_free(folder):
    """Raise FolderTaken, saying what to do, if ``folder`` exists and is not an empty folder."""
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise FolderTaken(f"{folder} exists: go on with --resume, or choose another --run-dir")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        kind = "is not empty and holds no run" if folder.is_dir() else "is a file"
        raise FolderTaken(f"{folder} {kind}: choose another --run-dir")


class Run:
    """A run folder: config.json, metrics.csv, steps.csv, two checkpoints, masks.png, curves.png."""

    def __init__(self, folder, trainer):
        self.folder, self.trainer = Path(folder), trainer
        self.metrics = []  # rows of metrics.csv
        self.saved = 0  # the step of the checkpoint
        self.drawn = 0  # epochs that curves.png shows
        self.next_save = 0.0  # the end of the pause, on the monotonic clock
        self.lock = None

    def create(self, about):
        """Make the folder, which must be new or empty; it appears with everything in it that ``--resume`` needs.

        Raises FolderTaken if it is in use.
        """
        try:
            with new_folder(self.folder) as folder:
                run = Run(folder, self.trainer)
                run.lock = Lock(folder)
                run._start(about)
            self.lock, run.lock.folder = run.lock, self.folder
        except OSError as error:
            check_free(self.folder)
            text = f"can't make the run folder {self.folder}: {error.strerror}"
            if self.folder.exists():  # empty, but not to be replaced: a mounted volume, say
                text += f"; give a new folder inside it: --run-dir {shell_word(self.folder / 'run')}"
            raise ConfigError(text) from None

    def _start(self, about):
        """Write config.json, an empty metrics.csv, masks.png and the first checkpoint."""
        levels = self.trainer.monitors.levels(len(self.trainer.dataset.classes))
        self._write_about(about | {"made": self._provenance(), "untrained": levels})
        self._write_rows()
        start_steps(self.place)
        draw_masks(self.place / "masks.png", self.trainer.config, self.trainer.images)
        self._write_checkpoint()

    def resume(self, say=tell):
        """Resume the run at its checkpoint; later rows of metrics are dropped.

        Says so if numbers will differ in their last digits, because of another device or BLAS.
        """
        self.lock = Lock(self.folder)
        t = self.trainer
        try:
            about = read_run(self.folder)
            t.progress = checkpoint.restore(self.folder / checkpoint.FILE, t.model, t.optimizer, t.data)
            self.saved = t.progress.step
            done = t.progress.step // t.steps_per_epoch
            self.metrics = read_metrics(self.folder, done)
            self._write_rows()
            start_steps(self.place, read_steps(self.folder, t.progress.step))
            if done:  # in case the run was killed right after the checkpoint
                self._draw()
                if t.progress.step % t.steps_per_epoch == 0:
                    self._keep(done)
            remove_spares(self.place)
            self._note_resumption(about, say)
        except MinijepaError:
            self._unlock()
            raise

    def _note_resumption(self, about, say):
        """Add this process's provenance to config.json."""
        earlier, now = about.get("resumed"), self._provenance()
        earlier = earlier if isinstance(earlier, list) else []
        if changed := provenance.changes([about.get("made"), *earlier][-1], now):
            say(f"last digits will differ from those of a run without the interruption: {changed}")
        self._write_about(about | {"resumed": [*earlier, {"step": self.saved} | now]})

    def _provenance(self):
        t = self.trainer
        shared = {"processes": t.ranks.size} if t.ranks.size > 1 else {}
        return provenance.provenance(t.device, t.lanes.workers) | shared

    def _unlock(self):
        if self.lock:
            self.lock.release()
        self.lock = None

    @property
    def place(self):
        """The folder, to write to it. Raises ConfigError if another one now has its path."""
        if self.lock:
            self.lock.check()
        return self.folder

    def _write_about(self, about):
        with replaced(self.place / "config.json", "w") as file:
            file.write(json.dumps(about, indent=2) + "\n")

    def _write_rows(self):
        with replaced(self.place / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.metrics)

    def _write_steps(self):
        rows, self.trainer.steps = self.trainer.steps, []
        append_steps(self.place, rows)

    def save(self):
        t = self.trainer
        t.read()  # raises an error if the run has gone wrong, before it is saved
        t.check_weights()
        t.check_ranks()
        self._write_steps()
        self._write_checkpoint()

    def _write_checkpoint(self):
        t = self.trainer
        checkpoint.save(self.place / checkpoint.FILE, t.model, t.optimizer, t.progress, t.data)
        self.saved = t.progress.step

    def _draw(self):
        if self.drawn != len(self.metrics):
            draw_curves(self.place, self.metrics)
            self.drawn = len(self.metrics)

    def train(self, say=tell, then=lambda: None):
        """Train to the end of the last epoch and call ``then``, or until interrupted.

        Returns the signal's number, or 0 at the end. Then unlocks the folder.
        """
        try:
            stopped = self._train(say)
            if not stopped:
                then()
            return stopped
        except CheckpointError as error:  # a full disk, say
            raise CheckpointError(f"{error}; step {self.saved} is saved: fix that, then use --resume") from None
        finally:
            self._unlock()

    def _train(self, say):
        t = self.trainer
        clock = Clock(t)

        def show(text):  # above the progress bar, if there is one
            bar.clear()
            say(text)

        with (
            self._watched(),
            Interruptible() as interrupted,
            tqdm(total=t.total_steps, initial=t.progress.step, unit="step", disable=None, dynamic_ncols=True) as bar,
        ):
            while t.progress.step < t.total_steps:
                step = t.progress.step
                t.collect(step, t.train_step(step))
                t.progress.step += 1
                clock.tick(show)
                bar.update()
                if t.progress.step % 10 == 0 and t.progress.sums:
                    bar.set_postfix(self._postfix(clock), refresh=False)
                if t.progress.step % t.steps_per_epoch == 0:
                    self._end_epoch(step, clock, show)
                stopped = max(t.ranks.gather(interrupted.signal))
                if stopped and t.progress.step < t.total_steps:
                    if self.saved < t.progress.step:
                        self.save()
                    self._draw()
                    return stopped
        return 0

    def _end_epoch(self, step, clock, show):
        """The rows, the checkpoint, the messages and the curves of the epoch that ends with ``step``."""
        t = self.trainer
        t.read()
        t.check_weights()
        row = epoch_row(t, step, clock)
        t.progress.sums = {}
        self.metrics.append(row)
        self._write_rows()
        self._write_steps()  # what is written here for later steps than the checkpoint's, --resume drops
        if due := self._due(row["epoch"]):
            self.save()  # before anything of less importance can fail
            self._keep(row["epoch"])
        show(epoch_line(row, t.config.epochs))
        found = (float(row[name]) for name in ("feature_std", "rank_me", "content_r2"))
        if len(t.monitors.watched) >= FEWEST and (text := warning(*found, row["epoch"] / t.config.epochs, t.config)):
            show(text)
        if due:
            self._draw()
            self.next_save = time.monotonic() + PAUSE
        clock.start_epoch()

    def _due(self, epoch):
        """If this epoch is saved and drawn: the same answer on all ranks, which save together."""
        needed = self._is_kept(epoch) or epoch == self.trainer.config.epochs
        return self.trainer.ranks.first(lambda: needed or time.monotonic() >= self.next_save)

    @contextlib.contextmanager
    def _watched(self):
        """Errors in training name the last checkpoint."""
        left = f"{self.folder / checkpoint.FILE} is of step"
        try:
            with np.errstate(all="ignore"):  # values that are not finite end the run, in one line
                yield
        except (DataError, TrainingError) as error:  # DataError: the monitors', for features that are not finite
            with contextlib.suppress(Exception):  # steps.csv and curves.png show what led to it, if they can
                self._write_steps()
                self._draw()
            remedy = f": {REMEDY}" if isinstance(error, DataError) else ""
            raise TrainingError(f"{error}{remedy}; {left} {self.saved}, before that") from None

    def _postfix(self, clock):
        t = self.trainer
        done = (t.progress.step - 1) % t.steps_per_epoch + 1 - len(t.unread)
        return {"loss": f"{t.progress.sums['loss'] / done:.3f}", "img/s": f"{clock.images_per_s():.0f}"}

    def _is_kept(self, epoch):
        every = self.trainer.config.keep_every
        return every > 0 and epoch % every == 0

    def _keep(self, epoch):
        if self._is_kept(epoch):
            content = (self.place / checkpoint.FILE).read_bytes()
            with replaced(self.place / f"checkpoint-{epoch:04d}.npz") as file:
                file.write(content)


class Helper(Run):
    """The run of a rank above 0, which only computes: files, messages, monitors and pictures are left to rank 0."""

    def train(self, say=None, then=None):
        self.saved = self.trainer.progress.step
        return super().train(lambda text: None)

    def _end_epoch(self, step, clock, show):
        if self._due((step + 1) // self.trainer.steps_per_epoch):
            self.save()
        self.trainer.progress.sums = {}

    def _write_steps(self):
        self.trainer.steps = []

    def _write_checkpoint(self):
        self.saved = self.trainer.progress.step


def read_run(folder):
    """config.json of a run folder. Raises ConfigError in one line."""
    file = Path(folder) / "config.json"
    try:
        with open_plain(file, encoding="utf-8") as content:
            about = json.load(content)
    except OSError as error:
        raise ConfigError(f"no run at {folder}: config.json: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{file} is not JSON: the run can't be resumed") from None
    about = about if isinstance(about, dict) else {}
    if not (isinstance(about.get("config"), dict) and isinstance(about.get("dataset"), str)):
        raise ConfigError(f"{file} lacks the run's config or dataset: the run can't be resumed")
    if about.get("precision", "tf32") not in ("tf32", "fp32"):
        raise ConfigError(f"{file} has an unknown precision: the run can't be resumed")
    return about
