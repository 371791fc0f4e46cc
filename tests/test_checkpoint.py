"""Checkpoints: everything comes back, nothing half-written stays, and what is broken is named."""

import json
import os
import random
import subprocess
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from minijepa import IJEPA, Config, files, load
from minijepa.errors import CheckpointError
from minijepa.training import checkpoint
from minijepa.training.optim import AdamW

SMALL = dict(
    encoder_embed_dim=8, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=4, predictor_depth=1,
    predictor_num_heads=2,
)  # fmt: skip


DATA = {"dataset": "cifar10", "images": 50, "crc32": 1}


def trained(seed=0):
    """A model and an optimiser whose every number differs from a fresh one's."""
    model = IJEPA(Config(**SMALL), seed)
    model.mean, model.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    optimizer = AdamW(model.flat.data, model.flat.grad, model.decayed, 0.05)
    draw = np.random.default_rng(seed)
    for vector in (model.flat.data, model.target_flat.data, optimizer.m, optimizer.v):
        vector[...] = draw.standard_normal(vector.size)
    optimizer.steps = 17
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    model, optimizer = trained()
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, model, optimizer, checkpoint.Progress(123, {"loss": 4.5}), DATA)
    return path, model, optimizer


def test_everything_comes_back(saved):
    path, model, optimizer = saved
    other, other_optimizer = trained(seed=1)
    progress = checkpoint.restore(path, other, other_optimizer, DATA)
    assert progress == checkpoint.Progress(123, {"loss": 4.5})
    assert other_optimizer.steps == 17
    for name in ("m", "v"):
        np.testing.assert_array_equal(getattr(other_optimizer, name), getattr(optimizer, name))
    np.testing.assert_array_equal(other.flat.data, model.flat.data)
    np.testing.assert_array_equal(other.target_flat.data, model.target_flat.data)


def test_load_gives_the_model_with_its_channel_statistics(saved):
    path, model, _ = saved
    for place in (path, path.parent, str(path)):
        loaded = load(place)
        assert (loaded.mean, loaded.std) == (model.mean, model.std)
        assert loaded.config == model.config
        images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
        np.testing.assert_array_equal(loaded.encode(images).data, model.encode(images).data)


def test_the_file_is_plain_and_needs_no_pickle(saved):
    with np.load(saved[0], allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        assert file["model/context_encoder.pos_embed"].shape == (1, 64, 8)
        assert file["adam_m/predictor.mask_token"].shape == (1, 1, 4)
    assert (about["step"], about["dataset"], about["config"]["encoder_embed_dim"]) == (123, "cifar10", 8)
    assert [p.name for p in saved[0].parent.iterdir()] == ["checkpoint.npz"]


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["about", "model/context_encoder.pos_embed"])
def test_a_pickle_is_refused_and_not_run(saved, tmp_path, name):
    path, sprung = saved[0], tmp_path / "sprung"
    with np.load(path) as file:
        np.savez(path, **{**file, name: np.array([Trap(sprung)], object)})
    with pytest.raises(CheckpointError, match="not a whole minijepa checkpoint"):
        load(path)
    assert not sprung.exists()


def test_a_failed_write_leaves_the_previous_checkpoint(saved, monkeypatch):
    path, model, optimizer = saved
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(CheckpointError, match="No space left on device; what stood there is untouched"):
        checkpoint.save(path, model, optimizer, checkpoint.Progress(), DATA)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.npz"]


def test_a_full_disk_in_the_middle_of_a_file_leaves_the_previous_checkpoint(saved):
    """As the system reports it: no file may grow beyond 20 kB."""
    resource = pytest.importorskip("resource")
    path, model, optimizer = saved
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"can't write .*checkpoint.npz: File too large; what stood there is"):
            checkpoint.save(path, model, optimizer, checkpoint.Progress(124), DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.npz"]


def test_the_checkpoint_before_the_last_is_kept(saved):
    path, model, optimizer = saved
    for step in (124, 125):
        checkpoint.save(path, model, optimizer, checkpoint.Progress(step), DATA)
        steps = {p.name: checkpoint.read(p)[0]["step"] for p in path.parent.iterdir()}
        assert steps == {"checkpoint.npz": step, "checkpoint-previous.npz": step - 1}


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_whole_checkpoint_is_there_whenever_the_power_fails(saved, monkeypatch, links):
    """Before and after every change of a name, what can be found is whole, and on the disk."""
    path, model, optimizer = saved
    checkpoint.save(path, model, optimizer, checkpoint.Progress(124), DATA)
    calls, synced = [], []

    def watched(name):
        real = getattr(os, name)

        def call(*args):
            calls.append(name)
            look()
            if name == "link" and not links:
                raise PermissionError(1, "Operation not permitted")
            result = real(*args)
            look()
            return result

        return call

    def look():
        assert synced  # the new file's content was flushed before any name changes
        found = [p for p in (path, path.with_name("checkpoint-previous.npz")) if p.exists()]
        assert not links or (len(found) == 2 and not os.path.samefile(*found))
        assert {checkpoint.read(p)[0]["step"] for p in found} <= {123, 124, 125} and found

    monkeypatch.setattr(
        files, "os", SimpleNamespace(
            path=os.path, open=os.open, close=os.close, O_RDONLY=os.O_RDONLY, link=watched("link"),
            replace=watched("replace"), fsync=lambda descriptor: synced.append(os.fsync(descriptor)),
        ),
    )  # fmt: skip
    checkpoint.save(path, model, optimizer, checkpoint.Progress(125), DATA)
    assert calls == ["link", "replace", "replace"]
    assert len(synced) == 2  # the file, then the folder
    assert checkpoint.read(path)[0]["step"] == 125
    assert checkpoint.read(path.with_name("checkpoint-previous.npz"))[0]["step"] == 124


def test_a_flipped_bit_of_an_array_is_refused_and_any_other_changes_nothing(saved):
    path, _, _ = saved
    whole = path.read_bytes()
    wanted = checkpoint.read(path)
    with zipfile.ZipFile(path) as file:
        (info,) = [i for i in file.infolist() if i.filename == "model/context_encoder.pos_embed.npy"]
    array = range(info.header_offset + 300, info.header_offset + info.file_size)
    for number in range(200):
        draw = random.Random(number)
        at = draw.choice(array) if number % 2 else draw.randrange(len(whole) - 12_000, len(whole))  # the list of parts
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        try:
            about, arrays = checkpoint.read(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:
            assert not number % 2
            assert about == wanted[0]
            assert arrays.keys() == wanted[1].keys()
            assert all(np.array_equal(arrays[name], wanted[1][name]) for name in arrays)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_names_the_command_that_brings_the_one_before(saved, damage):
    path, model, optimizer = saved
    checkpoint.save(path, model, optimizer, checkpoint.Progress(124), DATA)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint.npz.*; the one before it, of step 123, is whole") as error:
        load(path.parent)
    subprocess.run(str(error.value).partition("is whole: ")[2], shell=True, check=True)
    assert checkpoint.restore(path.parent, model, optimizer, DATA).step == 123


def test_two_damaged_checkpoints_promise_nothing(saved):
    path = saved[0]
    for name in ("checkpoint.npz", "checkpoint-previous.npz"):
        path.with_name(name).write_bytes(b"?")
    with pytest.raises(CheckpointError, match=r"checkpoint-previous.npz is no better$"):
        load(path)


@pytest.mark.parametrize("kind", ["cut", "text", "empty", "other npz"])
def test_a_broken_file_is_one_line(saved, kind):
    path = saved[0]
    if kind == "other npz":
        np.savez(path, weights=np.ones(3))
    else:
        path.write_bytes({"cut": path.read_bytes()[:2000], "text": b"no checkpoint", "empty": b""}[kind])
    with pytest.raises(CheckpointError, match="checkpoint.npz is not a whole minijepa checkpoint") as error:
        load(path)
    assert "\n" not in str(error.value)


def rewritten(path, about=None, **arrays):
    """The checkpoint at ``path`` with some fields and arrays changed."""
    with np.load(path) as file:
        everything = dict(file)
    about = json.loads(str(everything["about"])) | (about or {})
    np.savez(path, **(everything | arrays | {"about": np.array(json.dumps(about))}))


def test_no_file_and_another_format(saved, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load(tmp_path / "nothing")
    rewritten(saved[0], {"format": 99})
    with pytest.raises(CheckpointError, match="format 99, this version reads 2"):
        load(saved[0])


@pytest.mark.parametrize(
    "about",
    [{"step": -5}, {"step": "x"}, {"step": True}, {"sums": []}, {"sums": {"loss": "low"}}, {"mean": [None] * 3},
     {"optimizer_steps": None}, {"dataset": 3}, {"config": []}],
    ids=str,
)  # fmt: skip
def test_an_altered_field_is_named(saved, about):
    rewritten(saved[0], about)
    with pytest.raises(CheckpointError, match="is not a whole minijepa checkpoint"):
        load(saved[0])


def test_an_altered_moment_is_refused(saved):
    path, model, optimizer = saved
    rewritten(path, **{"adam_m/predictor.mask_token": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match=r"predictor.mask_token has shape \(1,\), the model's is \(1, 1, 4\)"):
        checkpoint.restore(path, model, optimizer, DATA)


@pytest.mark.parametrize(
    ("config", "data", "words"),
    [
        ({"epochs": 50}, {}, "written with epochs 100, not 50"),
        ({}, {"dataset": "shapes"}, "written with dataset cifar10, not shapes"),
        ({}, {"images": 49}, "written with images 50, not 49"),
        ({}, {"crc32": 2}, "written with crc32 1, not 2"),
    ],
)
def test_going_on_with_other_settings_or_other_images_is_refused(saved, config, data, words):
    model = IJEPA(Config(**(SMALL | config)))
    optimizer = AdamW(model.flat.data, model.flat.grad, model.decayed, 0.05)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.restore(saved[0], model, optimizer, DATA | data)
    assert optimizer.steps == 0


def test_a_setting_younger_than_the_checkpoint_has_its_default(saved):
    path, model, optimizer = saved
    config = model.config.to_dict()
    del config["init_std"]
    rewritten(path, {"config": config})
    assert checkpoint.restore(path, model, optimizer, DATA).step == 123
    other = IJEPA(Config(**(SMALL | {"init_std": 0.08})))
    with pytest.raises(CheckpointError, match=r"written with init_std 0\.02, not 0\.08"):
        checkpoint.restore(path, other, optimizer, DATA)


def test_a_checkpoint_of_another_network_is_refused(saved):
    other = IJEPA(Config(**(SMALL | {"encoder_embed_dim": 16})))
    optimizer = AdamW(other.flat.data, other.flat.grad, other.decayed, 0.05)
    with pytest.raises(CheckpointError, match="written with encoder_embed_dim 8, not 16"):
        checkpoint.restore(saved[0], other, optimizer, DATA)


def test_a_command_can_be_copied_whatever_the_folder_is_called():
    assert files.shell_word("runs/a") == "runs/a"
    assert files.shell_word("my runs/a") == "'my runs/a'"
    assert files.shell_word("-d") == "./-d"
