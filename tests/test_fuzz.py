"""Bad input, by the hundred: whatever is done to a file or a setting, the answer is a result or one of our own errors.

``MINIJEPA_FUZZ=10000 python -m pytest tests/test_fuzz.py`` tries more. Every case depends on its number alone.
"""

import dataclasses
import json
import os
import random

import numpy as np
import pytest
from conftest import begun, python_2_pickle, readers
from PIL import Image
from tiny import NETWORK, command, raising, refusal

import minijepa.data
import probe
import train
from minijepa import Config, load_cifar10
from minijepa.config import parse_assignment
from minijepa.data import read_folder
from minijepa.errors import CheckpointError, ConfigError, DataError
from minijepa.evaluation import evaluate
from minijepa.training import metrics
from minijepa.training.metrics import draw_curves
from minijepa.training.trainer import Trainer

CASES = int(os.environ.get("MINIJEPA_FUZZ", "200"))
JUNK = [
    None, True, -1, 0, 1, 2, 3, 7, 64, 10**6, 10**30, -0.5, 0.3, 1.5, 1e-300, 1e300, float("nan"), float("inf"), "",
    "x", "l2", [], [1], [0.1, 0.2], (0.2, 0.1), (0.0, 1.0), [None, 1], ["a", "b"], [[1, 2], 3], {}, {"a": 1},
    10**400, -(10**400), [10**400, 1], "x" * 5000,
]  # fmt: skip


def damaged(data, draw):
    """``data`` with one or a few things wrong: cut, grown, overwritten, a piece moved or repeated."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randrange(len(data) + 1), draw.choice([1, 1, 2, 16, 500])
        kind = draw.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = draw.randbytes(length)
        elif kind == 3:
            data[at : at + length] = draw.randbytes(length)
        elif kind == 4:
            data[at : at + length] = bytes(len(data[at : at + length]))
        else:
            data[at:at] = data[: length * 2]
    return bytes(data)


def is_refused(call, kind):
    """Whether ``call()`` raises an error of that kind, of one line."""
    try:
        call()
    except kind as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 2000
        return True
    return False


def test_damaged_checkpoints(saved):
    path, whole, refused = saved[0], saved[0].read_bytes(), 0
    for number in range(CASES):
        path.write_bytes(damaged(whole, random.Random(number)))
        refused += sum(is_refused(read, CheckpointError) for read in readers(*saved))
    assert refused > CASES  # of 2 CASES; damage where nothing is stored goes unnoticed


def test_checkpoints_with_other_contents(saved):
    """A well-formed file whose fields or arrays are not what they should be."""
    path, refused = saved[0], 0
    with np.load(path) as file:
        arrays = dict(file)
    others = [np.zeros(0), np.zeros((2, 2)), np.array("text"), np.array(1j), np.full((1, 64, 8), np.inf), np.arange(3)]
    for number in range(CASES // 4):
        draw = random.Random(number)
        about = json.loads(str(arrays["about"]))
        name = draw.choice([*about, "config", *arrays])
        if name == "config" and draw.random() < 0.7:
            about["config"][draw.choice(list(about["config"]))] = draw.choice(JUNK)
        elif name in about:
            about[name] = draw.choice(JUNK)
        changed = {"about": np.array(json.dumps(about))} | ({name: draw.choice(others)} if name in arrays else {})
        np.savez(path, **arrays | changed)
        refused += sum(is_refused(read, CheckpointError) for read in readers(*saved))
    assert refused > CASES // 4


def assert_images(images, labels):
    assert images.shape == (len(labels), 3, 32, 32) and labels.max() < 10


@pytest.mark.parametrize(("version", "suffix"), [("bin", ".bin"), ("py", "")])
def test_damaged_data_files(tmp_path, version, suffix):
    folder = tmp_path / f"cifar-10-batches-{version}"
    folder.mkdir()
    whole = b"".join(bytes([i]) + bytes(3072) for i in range(4))
    if version == "py":
        whole = python_2_pickle(np.frombuffer(whole, np.uint8).reshape(4, 3073))
    names = [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]
    for name in names:
        (folder / name).write_bytes(whole)
    for number in range(CASES):
        draw = random.Random(number)
        name = draw.choice(names)
        (folder / name).write_bytes(damaged(whole, draw))
        for split in ("train", "test"):
            is_refused(lambda split=split: assert_images(*load_cifar10(tmp_path, split)), DataError)
        (folder / name).write_bytes(whole)


def test_settings():
    def make():
        config = Config.preset(draw.choice(["cifar10", "best", "laptop", "smoke"]), **changes)
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    fields = [field.name for field in dataclasses.fields(Config)]
    for number in range(5 * CASES):
        draw = random.Random(number)
        changes = {draw.choice([*fields, "nonsense"]): draw.choice(JUNK) for _ in range(draw.randint(1, 3))}
        is_refused(make, ConfigError)


def test_assignments():
    alphabet = "abc=_. 01-+e(),[]{}'\"\\\n\x00²√"
    for number in range(5 * CASES):
        draw = random.Random(number)
        text = "".join(draw.choice(alphabet) for _ in range(draw.randint(0, 12)))
        text = draw.choice(["epochs=", "target_scale=", ""]) + text
        is_refused(lambda text=text: Config.preset("cifar10", **dict([parse_assignment(text)])), ConfigError)


def test_damaged_pictures(tmp_path):
    """What probe.py --images is given."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    whole = {}
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm"):
        picture.save(tmp_path / f"whole.{suffix}")
        whole[suffix] = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"whole.{suffix}").unlink()
    refused = 0
    for number in range(CASES):
        draw = random.Random(number)
        suffix = draw.choice(sorted(whole))
        path = tmp_path / f"picture.{suffix}"
        path.write_bytes(damaged(whole[suffix], draw))
        if is_refused(lambda: read_folder(tmp_path, 32), DataError):
            refused += 1
        else:
            own = read_folder(tmp_path, 32)
            assert own.names == [path.name] and own.images.shape == (1, 3, 32, 32) and own.images.dtype == np.uint8
        path.unlink()
    assert 0 < refused < CASES


# ------------------------------------------------------------------------------------------------------ command lines


@pytest.fixture
def places(tmp_path, monkeypatch, cifar_folder):
    """The working folder, with a run, data and odd things in it; what is accepted goes no further than its start."""
    data = minijepa.data.load_dataset("cifar10", cifar_folder)
    begun(tmp_path / "run", Trainer(Config(**NETWORK), data), "cifar10")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a\nb").mkdir()
    (tmp_path / "file").write_text("?")

    monkeypatch.chdir(tmp_path)
    begin = raising(ConfigError("accepted, as far as can be told without beginning"))
    monkeypatch.setattr(train, "Trainer", begin)
    monkeypatch.setattr(evaluate, "load_dataset", begin)
    load = minijepa.data.load_dataset
    monkeypatch.setattr(train, "load_dataset", lambda name, folder: load("cifar10", folder, download=False))
    return tmp_path


VALUES = [
    "", "0", "-1", "1", "3", "2.5", "1e3", "nan", "inf", "1e400", "9" * 400, "9" * 5000, "0x1" + "0" * 5000, "x", "²",
    "\udcff", "-", "--",
    "=", "a=b", "epochs=2", "target_scale=(0.1,0.2)", "loss=" + "(" * 300, "seed=" + "-" * 3000 + "1",
    "epochs=1if 1else 2",
    "run", "empty", "file", "data", "run/checkpoint.npz", "nowhere", "file/x", "y" * 300, "z/" * 3000, "~", "/", "a\nb",
    "cpu", "cuda", "auto", "cifar10", "shapes", "best", "smoke", "test", "val", "tf32", "encoder_depth=64",
]  # fmt: skip


@pytest.mark.parametrize("program", [train, probe], ids=["train.py", "probe.py"])
def test_command_lines(program, places, capsys):
    flags = [flag for action in program.parser()._actions for flag in action.option_strings]
    name = program.parser().prog
    before = sorted(places.rglob("*"))
    accepted = 0
    for number in range(2 * CASES):
        draw = random.Random(number)
        args = ["--device=cpu"] if draw.random() < 0.7 else []
        for _ in range(draw.randint(0, 4)):
            flag, value = draw.choice(flags), draw.choice(VALUES)
            args += draw.choice([[flag, value], [flag, value], [f"{flag}={value}"], [flag], [value]])
        if program is probe and draw.random() < 0.5:
            args.insert(0, "run")
        status, _, err = command(capsys, program.main, *args)
        if err:
            assert status == 2 and f"{name}: " in err and len(err) < 50_000
            assert err.startswith("usage: ") or err.count("\n") == 1, args
        else:
            assert status == 0 and {"-h", "--help", "--version"} & {*args}, args
        accepted += "accepted, as far as" in err
    assert sorted(places.rglob("*")) == before
    assert accepted > CASES / 10


def test_damaged_configs(places, capsys):
    path = places / "run" / "config.json"
    whole = path.read_bytes()
    for number in range(CASES):
        path.write_bytes(damaged(whole, random.Random(number)) if number else b"[" * 100_000)
        refusal(capsys, train.main, "--resume", "--run-dir=run", "--device=cpu")


@pytest.mark.parametrize("file", ["metrics.csv", "steps.csv"])
def test_damaged_metrics(cifar_folder, tmp_path, monkeypatch, file):
    """Refused, or taken up and fit to be drawn."""
    monkeypatch.setattr(metrics, "curves_picture", lambda *args: None)
    config = Config(**NETWORK, epochs=2, warmup_epochs=0, batch_size=40, knn_every=0)
    data, refused = minijepa.data.load_dataset("cifar10", cifar_folder), 0
    run = begun(tmp_path / "run", Trainer(config, data), "cifar10")
    run.train(lambda text: None)
    path = run.folder / file
    whole = path.read_bytes()
    for number in range(CASES // 2):
        path.write_bytes(damaged(whole, random.Random(number)))
        if is_refused(run.resume, ConfigError):
            refused += 1
        else:
            run._unlock()
            draw_curves(run.folder, run.metrics)
    assert CASES / 4 < refused < CASES / 2
