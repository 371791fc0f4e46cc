"""Nothing lost, nothing drifting: runs that are killed at any moment, and numbers that are held to earlier ones."""

import gc
import json
import os
import random
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, assert_same_run, finish, output, python, write_cifar
from tiny import DEEPER, flags, noise, refusal

import train
from minijepa import Config, Function, cli
from minijepa.training import checkpoint
from minijepa.training.metrics import read_metrics
from minijepa.training.trainer import Trainer

LOSSES = ROOT / "tests" / "reference" / "losses.json"
KILLS = int(os.environ.get("MINIJEPA_KILLS", "9"))  # a longer campaign: MINIJEPA_KILLS=500
STEPS = int(os.environ.get("MINIJEPA_STEPS", "80"))  # MINIJEPA_STEPS=2000 for more


# ------------------------------------------------------------------------------------------------- killed at any moment


class Fork:
    """Starts train.py again and again, as forks of one process that has loaded it: that saves half a second each."""

    CODE = """if True:
        import json, os, sys, train

        def killed_before(call):  # the so many-th call that changes files or names, or has them on the disk
            calls = iter(range(1, call))

            def watched(real):
                def function(*args, **kwargs):
                    if next(calls, None) is None:
                        os.kill(os.getpid(), 9)
                    return real(*args, **kwargs)
                return function

            for name in ("fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink"):
                setattr(os, name, watched(getattr(os, name)))

        for line in sys.stdin:
            call, arguments = json.loads(line)
            child = os.fork()
            if child == 0:
                os.dup2(2, 1)  # what it prints goes to the log
                if call:
                    killed_before(call)
                os._exit(train.main(arguments))
            print(child, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        """

    def __init__(self, log):
        self.log = open(log, "w")  # noqa: SIM115
        pipe = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1)
        self.process = subprocess.Popen([sys.executable, "-c", self.CODE], cwd=ROOT, **pipe)

    def run(self, arguments, seconds=None, call=0):
        """The exit status of ``train.py arguments``, −9 if it was killed, after ``seconds`` or before its ``call``."""
        self.process.stdin.write(json.dumps([call, arguments]) + "\n")
        child = int(self.process.stdout.readline())
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
        return int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(tmp_path):
    """SIGKILL lets nothing be tidied up. The run goes on every time, and ends with the same bits and the same rows.

    Every third kill comes at a random time, the others before a random one of the calls that change files.
    """
    data = write_cifar(tmp_path, 8, 20, spread=30)
    settings = DEEPER | dict(batch_size=20, epochs=2, warmup_epochs=1, augment_flip=True, augment_crop=4, knn_every=2)

    def arguments(folder):
        command = ["--device=cpu", "--threads=1", f"--data-dir={data}", f"--run-dir={folder}"]
        return command + (["--resume"] if folder.exists() else flags(settings))

    whole, killed, log = tmp_path / "whole", tmp_path / "runs" / "killed", tmp_path / "log"
    draw, kills = random.Random(0), 0
    with Fork(log) as train_py:
        began = time.perf_counter()
        assert train_py.run(arguments(whole)) == 0
        duration = time.perf_counter() - began
        while True:
            if kills == KILLS:
                moment = {}
            elif kills % 3 == 2:
                moment = {"seconds": draw.uniform(0, 0.7) * duration}
            else:
                moment = {"call": draw.randint(1, 45)}
            status = train_py.run(arguments(killed), **moment)
            if status == -signal.SIGKILL:
                kills += 1
                if killed.exists():  # a folder that is there is whole; where there is none, the run starts anew
                    read_metrics(killed)
                    checkpoint.load(killed)
                elif killed.parent.exists():  # what it leaves is hidden
                    assert all(path.name.startswith(".unfinished-") for path in killed.parent.iterdir())
                continue
            assert status == 0, log.read_text()
            assert_same_run(killed, whole)
            assert not list(killed.glob("*.tmp"))
            if kills == KILLS:
                break
            shutil.rmtree(killed)


@pytest.fixture
def arguments(cifar_folder, tmp_path):
    settings = DEEPER | dict(batch_size=20, epochs=2, warmup_epochs=1, knn_every=0)
    places = [f"--data-dir={cifar_folder}", f"--run-dir={tmp_path / 'run'}"]
    return ["--device=cpu", "--threads=1", *places, *flags(settings)]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(arguments, tmp_path, capsys):
    """With the command that is printed, and to the same end: the rows of metrics that were ahead are written again."""
    folder = tmp_path / "run"
    assert train.main(arguments) == 0
    shutil.copytree(folder, tmp_path / "whole")
    (folder / "checkpoint.npz").write_bytes((folder / "checkpoint.npz").read_bytes()[:-3000])
    resume = [*arguments[:4], "--resume"]
    error = refusal(capsys, train.main, *resume)
    assert error.startswith(f"train.py: {folder}/checkpoint.npz is not an intact minijepa checkpoint")
    subprocess.run(error.partition("the one before it, of step 4, is intact: ")[2], shell=True, check=True)
    assert train.main(resume) == 0
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_terminal(closed):
    """Workers keep descriptors 0 to 2 open: a lock there would outlive its process."""
    code = "import os, sys; from minijepa.cli import exit_status; opened = lambda: open(os.devnull).fileno() <= 2"
    line = f"exec {shlex.join([sys.executable, '-c', f'{code}; os._exit(exit_status(str(), opened))'])} {closed}"
    assert subprocess.run(["sh", "-c", line], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_missing_terminal_harms_nothing(arguments, tmp_path, closed):
    """Nor does an environment without HOME, TERM and the like."""
    line = f"exec env -i {shlex.join([sys.executable, 'train.py', *arguments])} {closed}"
    assert subprocess.run(["sh", "-c", line], cwd=ROOT, timeout=120, check=False).returncode == 0
    assert len(finish(tmp_path / "run")[2]) == 2


# ------------------------------------------------------------------------------------------------------ memory


def test_memory_does_not_grow_with_the_steps():
    """Except for the shapes that signatures remember, whose number is limited."""
    warm = STEPS // 2
    trainer = tiny_trainer(epochs=STEPS, batch_size=4)
    for step in range(warm):
        trainer.train_step(step)
    gc.collect()
    resident = resident_bytes()
    tracemalloc.start()
    for step in range(warm, STEPS):
        trainer.train_step(step)
    for op in Function.__subclasses__():
        op.signature.match.cache_clear()
    gc.collect()
    allocated = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    grown = resident_bytes() - resident
    print(f"{STEPS - warm} steps: {allocated:,} bytes are still allocated, {grown:+,} bytes resident")
    assert allocated < 50_000 and grown < 20e6


def resident_bytes():
    """What the process holds in memory; 0 where the system has no /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


# -------------------------------------------------------------------------------------------------- numbers don't drift


def tiny_trainer(**changes):
    """On noise, in float64: data, masks, augmentation, network, AdamW, EMA and schedules."""
    settings = DEEPER | dict(
        batch_size=20, epochs=8, warmup_epochs=1, augment_flip=True, augment_crop=4,
        target_norm="layer_norm", ema_momentum_start=0.9,
    )  # fmt: skip
    return Trainer(Config(**(settings | changes)), noise(60), dtype=np.float64)


def first_losses(steps=20):
    """The losses of a tiny run."""
    trainer = tiny_trainer()
    return [trainer.train_step(step)["loss"] for step in range(steps)]


def test_the_first_losses_are_those_of_earlier_versions():
    """``PYTHONPATH=.:tests python tests/training/test_reliability.py`` writes them anew, where a change is meant to."""
    np.testing.assert_allclose(first_losses(), json.loads(LOSSES.read_text()), rtol=1e-9)


def test_the_same_seed_gives_the_same_bits_in_a_new_process():
    paths = "import sys; sys.path[:0] = ['tests', 'tests/training']; "
    code = paths + "import test_reliability as t; print(t.first_losses(5))"
    assert output("-c", code) == f"{first_losses(5)}\n"


ENDINGS = pytest.mark.parametrize("number", cli.ENDINGS, ids=lambda number: number.name)


@ENDINGS
def test_a_second_signal_ends_the_program_at_once(number, monkeypatch):
    """The first is remembered and the step finished; whoever can't wait sends another. Two at once count as one: so
    come SIGHUP from a shell whose terminal was closed and SIGTERM from ``timeout``.
    """
    now = [10.0]
    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with pytest.raises(SystemExit) as stop, cli.Interruptible() as interrupted:
        for _ in range(2):
            os.kill(os.getpid(), number)
            assert interrupted.signal == number
            now[0] += 0.4
        now[0] += 1
        os.kill(os.getpid(), number)
        pytest.fail("still here")
    assert stop.value.code == 128 + number


@ENDINGS
def test_a_signal_that_is_ignored_stays_so(number):
    """SIGHUP under nohup, SIGINT of a script's ``train.py &``."""
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        with cli.Interruptible() as interrupted:
            os.kill(os.getpid(), number)
        assert interrupted.signal == 0
        assert cli.exit_status("x", lambda: os.kill(os.getpid(), number) or 7) == 7
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, previous)


@pytest.mark.parametrize("program", ["train.py", "-mminijepa.gradcheck"])
def test_an_interruption_while_modules_load_is_a_line(tmp_path, program):
    (tmp_path / "cupy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = python(program, "--device=cpu", PYTHONPATH=str(tmp_path))
    name = "train.py" if program == "train.py" else "minijepa"
    assert (done.returncode, done.stderr) == (130, f"{name}: interrupted\n")


if __name__ == "__main__":
    LOSSES.write_text(json.dumps(first_losses(), indent=0) + "\n")
