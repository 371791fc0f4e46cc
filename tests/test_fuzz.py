"""Bad input, by the hundred: whatever is done to a file or a setting, the answer is a result or one of our own errors.

``MINIJEPA_FUZZ=10000 python -m pytest tests/test_fuzz.py`` tries more. Every case depends on its number alone.
"""

import dataclasses
import json
import os
import random

import numpy as np
import pytest

from minijepa import IJEPA, Config, checkpoint, load, load_cifar10
from minijepa.config import parse_assignment
from minijepa.errors import CheckpointError, ConfigError, DataError
from minijepa.optim import AdamW

CASES = int(os.environ.get("MINIJEPA_FUZZ", "200"))
SMALL = dict(
    encoder_embed_dim=8, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=4, predictor_depth=1,
    predictor_num_heads=2,
)  # fmt: skip
DATA = {"dataset": "cifar10", "images": 50, "crc32": 1}
JUNK = [
    None, True, -1, 0, 1, 2, 3, 7, 64, 10**6, 10**30, -0.5, 0.3, 1.5, 1e-300, 1e300, float("nan"), float("inf"), "",
    "x", "l2", [], [1], [0.1, 0.2], (0.2, 0.1), (0.0, 1.0), [None, 1], ["a", "b"], [[1, 2], 3], {}, {"a": 1},
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(model, optimizer, the bytes of their checkpoint)"""
    model = IJEPA(Config(**SMALL))
    optimizer = AdamW(model.flat.data, model.flat.grad, model.decayed, 0.05)
    path = tmp_path_factory.mktemp("saved") / "checkpoint.npz"
    checkpoint.save(path, model, optimizer, checkpoint.Progress(3, {"loss": 1.5}), DATA)
    return model, optimizer, path.read_bytes()


def one_line(error):
    assert "\n" not in str(error) and 10 < len(str(error)) < 2000


def test_damaged_checkpoints(saved, tmp_path):
    model, optimizer, whole = saved
    path = tmp_path / "checkpoint.npz"
    refused = 0
    for number in range(CASES):
        path.write_bytes(damaged(whole, random.Random(number)))
        for read in (lambda: load(path), lambda: checkpoint.restore(path, model, optimizer, DATA)):
            try:
                read()
            except CheckpointError as error:
                one_line(error)
                refused += 1
    assert refused > CASES  # of 2 CASES; damage where nothing is stored goes unnoticed


def test_checkpoints_with_other_contents(saved, tmp_path):
    """A well-formed file whose fields or arrays are not what they should be."""
    model, optimizer, whole = saved
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = dict(file)
    others = [np.zeros(0), np.zeros((2, 2)), np.array("text"), np.array(1j), np.full((1, 64, 8), np.inf), np.arange(3)]
    for number in range(CASES):
        draw = random.Random(number)
        about = json.loads(str(arrays["about"]))
        changed = dict(arrays)
        if draw.random() < 0.5:
            name = draw.choice([*about, "config"])
            if name == "config" and draw.random() < 0.7:
                about["config"][draw.choice(list(about["config"]))] = draw.choice(JUNK)
            else:
                about[name] = draw.choice(JUNK)
            changed["about"] = np.array(json.dumps(about))
        else:
            name = draw.choice(list(arrays))
            changed[name] = draw.choice(others)
        np.savez(path, **changed)
        for read in (lambda: load(path), lambda: checkpoint.restore(path, model, optimizer, DATA)):
            try:
                read()
            except CheckpointError as error:
                one_line(error)


def test_damaged_data_files(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    whole = b"".join(bytes([i]) + bytes(3072) for i in range(4))
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for name in names:
        (folder / name).write_bytes(whole)
    for number in range(CASES):
        draw = random.Random(number)
        name = draw.choice(names)
        (folder / name).write_bytes(damaged(whole, draw))
        for split in ("train", "test"):
            try:
                images, labels = load_cifar10(tmp_path, split)
                assert images.shape == (len(labels), 3, 32, 32) and labels.max() < 10
            except DataError as error:
                one_line(error)
        (folder / name).write_bytes(whole)


def test_settings():
    fields = [field.name for field in dataclasses.fields(Config)]
    for number in range(5 * CASES):
        draw = random.Random(number)
        changes = {draw.choice([*fields, "nonsense"]): draw.choice(JUNK) for _ in range(draw.randint(1, 3))}
        try:
            config = Config.preset(draw.choice(["cifar10", "best", "laptop", "smoke"]), **changes)
            assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        except ConfigError as error:
            one_line(error)


def test_assignments():
    alphabet = "abc=_. 01-+e(),[]{}'\"\\\n\x00²√"
    for number in range(5 * CASES):
        draw = random.Random(number)
        text = "".join(draw.choice(alphabet) for _ in range(draw.randint(0, 12)))
        text = draw.choice(["epochs=", "target_scale=", ""]) + text
        try:
            key, value = parse_assignment(text)
            Config.preset("cifar10", **{key: value})
        except ConfigError as error:
            assert len(str(error)) < 2000
