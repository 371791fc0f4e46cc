"""How fast a run is, and how long it will take."""

import math
import time

from minijepa.cli import counted


class Clock:
    """The speed of an epoch, and one estimate of the run's remaining time after a few steps."""

    def __init__(self, trainer):
        self.trainer = trainer
        # Warm-up steps, not measured: on a CPU the first one, on a GPU those before its graph is recorded.
        self.warm, self.seen = (1, 6) if trainer.device == "cpu" else (5, 45)
        self.started = self.warm_step_done = self.last_step_done = time.perf_counter()
        self.steps = self.epoch_steps = 0

    def tick(self, say):
        self.steps += 1
        self.epoch_steps += 1
        if self.steps in (self.warm, self.seen):
            self.trainer.read()  # on a GPU: waits, so that the GPU's time is measured and not the host's
        self.last_step_done = time.perf_counter()
        if self.steps == self.warm:
            self.warm_step_done = self.last_step_done
        if self.steps == self.seen and self.trainer.progress.step < self.trainer.total_steps:
            say(self._estimate())

    def start_epoch(self):
        """Measure from here; the end of an epoch (monitors, pictures, the checkpoint) is not training time."""
        self.started, self.epoch_steps = time.perf_counter(), 0
        self.warm_step_done += self.started - self.last_step_done

    def seconds(self):
        return time.perf_counter() - self.started

    def images_per_s(self):
        seconds = self.seconds()  # 0 if the clock is too coarse
        return self.epoch_steps * self.trainer.batch_size / seconds if seconds > 0 else math.nan

    def _estimate(self):
        t = self.trainer
        per_step = (time.perf_counter() - self.warm_step_done) / (self.seen - self.warm)
        left = t.total_steps - t.progress.step
        seconds = per_step * left
        text = f"about {duration(seconds)} for {counted(left, 'more step')}, without evaluations"
        if t.device == "cpu" and seconds > 2 * 3600:
            text += "; for a result in half an hour, use --preset laptop; with a GPU, --device cuda"
        return text


def duration(seconds):
    """``"45 s"``, ``"12 min"``, ``"3.2 h"``"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
