#!/usr/bin/env python3
"""Where a training step's time goes on a CPU: by operation, forward and backward, and by phase.

By default, two steps of the cifar10 preset on the built-in shapes; or, for example:

    python benchmarks/profile_step.py --preset laptop --steps 5 --set batch_size=64
"""

import argparse
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import blas

from minijepa import ops
from minijepa.autograd import Function
from minijepa.cli import exit_status, parse, tell
from minijepa.config import PRESETS, Config, parse_changes
from minijepa.data import load_dataset
from minijepa.training import lanes
from minijepa.training import trainer as training
from minijepa.training.trainer import Trainer

PREPARATION = ("masks", "data", "layout")  # before any network runs: drawing, augmenting, assembling


class Profile:
    """Seconds, calls and bytes saved, added up over steps; ``str()`` gives the mean.

    ``phases``: {name: seconds}, each without the phases inside of it. ``ops``: {name: its calls, seconds of forward and
    backward, and bytes saved for backward}.
    """

    def __init__(self, steps):
        self.steps = steps
        self.phases = defaultdict(float)
        self.ops = defaultdict(Counter)
        self._inside = [0.0]  # seconds of the phases inside of each open one

    def phase(self, name, function):
        """``function``, timed as a phase."""

        def timed(*args, **kwargs):
            self._inside.append(0.0)
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - started
                self.phases[name] += seconds - self._inside.pop()
                self._inside[-1] += seconds

        return timed

    def operation(self, op, method):
        """``op``'s forward or backward, timed."""
        function = getattr(op, method)

        def timed(*args, **options):
            started = time.perf_counter()
            result = function(*args, **options)
            self.ops[op.op_name][method] += time.perf_counter() - started
            self.ops[op.op_name]["calls"] += method == "forward"
            return result

        return staticmethod(timed)

    def counted(self, backward):
        """``backward`` of a tape, whose saved bytes are counted first."""

        def counting(tape, *args):
            for name, *_, saved in tape.lines():
                self.ops[name]["saved"] += saved
            return backward(tape, *args)

        return counting

    def __str__(self):
        n, total = self.steps, sum(self.phases.values())
        rows = [f"a step, mean of {n}, on one thread", f"{'phase':22}{'ms':>9}{'share':>8}"]
        for name, seconds in sorted(self.phases.items(), key=lambda item: -item[1]):
            rows.append(f"{name:22}{1e3 * seconds / n:9.1f}{100 * seconds / total:7.1f}%")
        preparation = sum(self.phases[name] for name in PREPARATION)
        rows.append(f"{' + '.join(PREPARATION):22}{1e3 * preparation / n:9.1f}{100 * preparation / total:7.1f}%")
        rows += ["", f"{'operation':22}{'calls':>9}{'forward ms':>12}{'backward ms':>13}{'share':>8}{'saved MB':>10}"]
        seconds_of = {name: op["forward"] + op["backward"] for name, op in self.ops.items()}
        for name, op in sorted(self.ops.items(), key=lambda item: -seconds_of[item[0]]):
            times = f"{1e3 * op['forward'] / n:12.1f}{1e3 * op['backward'] / n:13.1f}"
            share = f"{100 * seconds_of[name] / total:7.1f}%"
            rows.append(f"{name:22}{op['calls'] // n:9}{times}{share}{op['saved'] / n / 1e6:10.1f}")
        rest = total - sum(seconds_of.values())
        rows.append(f"{'outside of operations':43}{1e3 * rest / n:13.1f}{100 * rest / total:7.1f}%")
        return "\n".join(rows)


def profile_steps(trainer, steps):
    """A :class:`Profile` of ``steps`` training steps of ``trainer``, after a warm-up step.

    The trainer must have one worker, this process. "saved MB" is what operations keep for backward, in all chunks of a
    step together; a chunk frees its part before the next one starts.
    """
    profile, model = Profile(steps), trainer.model
    trainer.train_step(0)
    with ExitStack() as changes:

        def replace(owner, name, value):
            changes.enter_context(mock.patch.object(owner, name, value))

        for op in _operations():
            for method in ("forward", "backward"):
                replace(op, method, profile.operation(op, method))
        for name, owner, method in [
            ("masks", trainer.masker, "sample"), ("data", trainer, "batch"), ("layout", model, "prepare"),
            ("target encoder", model, "targets_of"), ("context encoder", model.context_encoder, "forward"),
            ("predictor", model.predictor, "forward"), ("optimiser", trainer.optimizer, "update"),
            ("backward", lanes.Tape, "backward"), ("EMA", training, "update_ema"),
            ("lanes", trainer.lanes, "gradients"), ("outside of these", trainer, "train_step"),
        ]:  # fmt: skip
            replace(owner, method, profile.phase(name, getattr(owner, method)))
        replace(lanes.Tape, "backward", profile.counted(lanes.Tape.backward))
        for step in range(1, steps + 1):
            trainer.train_step(step)
    return profile


def _operations():
    """Every Function of the package."""
    found, open_ = [], [Function]
    while open_:
        for op in open_.pop().__subclasses__():
            open_.append(op)
            if op.__module__.startswith(ops.__name__):
                found.append(op)
    return found


def main(argv=None):
    p = argparse.ArgumentParser(description="Time the training step of a preset, on the built-in shapes.")
    p.add_argument("--preset", choices=PRESETS, default="cifar10")
    p.add_argument("--steps", type=int, default=2, help="average over this many (default: 2)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="as in train.py")
    args = parse(p, argv)
    if args.steps < 1:
        p.error("--steps must be at least 1")

    def run():
        config = Config.preset(args.preset, **parse_changes((f"--set {text}", text) for text in args.changes))
        tell(blas.line())
        tell(profile_steps(Trainer(config, load_dataset("shapes", "data")), args.steps))
        return 0

    return exit_status("profile_step.py", run)


if __name__ == "__main__":
    sys.exit(main())
