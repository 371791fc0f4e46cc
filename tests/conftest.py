import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import NETWORK

from minijepa import IJEPA, Config
from minijepa.evaluation import evaluate, probing
from minijepa.training import checkpoint
from minijepa.training.metrics import read_metrics
from minijepa.training.optim import AdamW
from minijepa.training.run import Run
from minijepa.training.trainer import Trainer

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="a test that is skipped has failed: .ci/run")


def pytest_configure():
    """Signals as a terminal gives them: a shell's background job ignores SIGINT, and so would every program tested."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _judged((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _judged((yield), collector.config)


def _judged(report, config):
    if report.skipped and config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips forbids: {report.longrepr[-1]}"
    return report


def python(*arguments, cwd=ROOT, **variables):
    """A program that this Python ran: its .returncode, .stdout and .stderr. ``variables`` of the environment."""
    command, environment = [sys.executable, *map(str, arguments)], os.environ | variables
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8")


def output(*arguments):
    """What :func:`python` printed, if it ended with status 0."""
    done = python(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_cifar(parent, per_file, test, spread=0):
    """A data folder with a CIFAR-10 of noise around a grey that tells the class, up to ``spread``."""
    draw = np.random.default_rng(1)
    folder = parent / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, count in [*((f"data_batch_{i}", per_file) for i in range(1, 6)), ("test_batch", test)]:
        labels = draw.permutation(np.arange(count) % 10)
        grey = labels * 15 + draw.integers(0, spread + 1, count)
        pixels = (grey[:, None] + draw.integers(0, 40, (count, 3072))).astype(np.uint8)
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder.parent


@pytest.fixture
def cifar_folder(tmp_path):
    """5 × 16 training and 20 test images."""
    return write_cifar(tmp_path, 16, 20)


@pytest.fixture
def overlapping_cifar_folder(tmp_path):
    """5 × 80 training and 40 test images whose classes overlap, as those of real features do."""
    return write_cifar(tmp_path, 80, 40, spread=60)


@pytest.fixture
def fewer_pixels(monkeypatch):
    """A probe of 3,072 raw pixels inverts a matrix of that size for each strength; 12 of them tell the tests enough."""

    def narrow(train_x, train_y, test_x, *rest, **options):
        step = 256 if train_x.shape[1] == 3072 else 1
        return probing.linear_probe(train_x[:, ::step], train_y, test_x[:, ::step], *rest, **options)

    monkeypatch.setattr(evaluate, "linear_probe", narrow)


@pytest.fixture
def own_folder(tmp_path):
    """Pictures of several sizes, modes and formats, and files that are not pictures."""
    own, draw = tmp_path / "own", np.random.default_rng(0)
    own.mkdir()
    picture = Image.fromarray(draw.integers(0, 256, (70, 50, 3), np.uint8))
    for name in ("a.jpg", "b.PNG", "c.webp", "d.bmp", "e.gif", "f.tif"):
        picture.save(own / name)
    picture.convert("L").save(own / "g.png")
    Image.new("1", (3, 200), 1).save(own / "h.png")
    (own / "notes.txt").write_text("no picture")
    (own / ".hidden.png").write_text("no picture")
    (own / "folder.png").mkdir()
    return own


DATA = {"dataset": "cifar10", "images": 50, "crc32": 1}  # of a checkpoint that no run wrote
SUMS = {name: i + 1.5 for i, name in enumerate(sorted(checkpoint.SUMS))}


def trained(seed=0, **settings):
    """A model and an optimiser, every number of which is its own."""
    model = IJEPA(Config(**NETWORK | settings), seed)
    model.mean, model.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    optimizer = AdamW(model.flat.data, model.flat.grad, model.decayed, 0.05)
    draw = np.random.default_rng(seed)
    for vector in (model.flat.data, model.target_flat.data, optimizer.m, optimizer.v):
        vector += 0.1 * draw.standard_normal(vector.size)
    np.abs(optimizer.v, out=optimizer.v)
    optimizer.steps = 17
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    """The checkpoint of step 123, and the model and the optimiser that it holds."""
    model, optimizer = trained()
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, model, optimizer, checkpoint.Progress(123, SUMS), DATA)
    return path, model, optimizer


def readers(path, model, optimizer):
    """The two ways to read a checkpoint."""
    return (lambda: checkpoint.load(path)), (lambda: checkpoint.restore(path, model, optimizer, DATA))


def begun(folder, trainer, dataset="noise"):
    """A run whose folder is made, before its first step."""
    run = Run(folder, trainer)
    run.create({"preset": "cifar10", "dataset": dataset, "config": trainer.config.to_dict()})
    return run


def before_step(monkeypatch, number, act):
    """``act(trainer)`` happens before a step."""
    real = Trainer.train_step

    def step(trainer, n):
        if n == number:
            act(trainer)
        return real(trainer, n)

    monkeypatch.setattr(Trainer, "train_step", step)


def python_2_pickle(records):
    """The bytes of a file of CIFAR-10's Python version, operation by operation as Python 2 wrote them."""
    memo = iter(range(1, 250))

    def text(value):
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))) + value

    def number(value):
        if 0 <= value < 256:
            return b"K" + bytes([value])
        return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)

    def kept(operations):
        return operations + b"q" + bytes([next(memo)])

    dtype = kept(b"cnumpy\ndtype\n") + text(b"u1") + number(0) + number(1) + kept(b"\x87R")
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = kept(b"cnumpy.core.multiarray\n_reconstruct\n") + kept(b"cnumpy\nndarray\n")
    array += number(0) + b"\x85" + text(b"b") + kept(b"\x87R") + b"("
    array += number(1) + number(len(records)) + number(3072) + b"\x86" + dtype + b"\x89"
    array += text(records[:, 1:].tobytes()) + b"tb"
    labels = kept(b"]") + b"(" + b"".join(number(int(label)) for label in records[:, 0]) + b"e"
    names = kept(b"]") + b"(" + b"".join(text(b"a_%d.png" % i) for i in range(len(records))) + b"e"
    batch = kept(text(b"training batch 1 of 5"))
    entries = {b"batch_label": batch, b"labels": labels, b"data": array, b"filenames": names}
    return b"\x80\x02" + kept(b"}") + b"(" + b"".join(kept(text(k)) + v for k, v in entries.items()) + b"u."


def finish(folder):
    """Everything that a run leaves, but for times."""
    about, arrays = checkpoint.read(folder)
    rows = [{k: v for k, v in row.items() if k not in ("images_per_s", "seconds")} for row in read_metrics(folder)]
    return about, arrays, rows, (folder / "steps.csv").read_text()


def assert_same_run(one, other):
    np.testing.assert_equal(finish(one), finish(other))
