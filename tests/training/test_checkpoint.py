"""Checkpoints: everything comes back, nothing half-written stays, and what is broken is named."""

import os
import subprocess
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import DATA, SUMS, readers, trained
from tiny import NETWORK, Planted, rewritten

from minijepa import IJEPA, Config, files, load
from minijepa.errors import CheckpointError
from minijepa.training import checkpoint
from minijepa.training.optim import AdamW


def test_everything_comes_back(saved):
    path, model, optimizer = saved
    other, other_optimizer = trained(seed=1)
    progress = checkpoint.restore(path, other, other_optimizer, DATA)
    assert progress == checkpoint.Progress(123, SUMS)
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


@pytest.mark.parametrize("name", ["about", "model/context_encoder.pos_embed"])
def test_a_pickle_is_refused_and_not_run(saved, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with np.load(saved[0]) as file:
        np.savez(saved[0], **{**file, name: np.array([Planted()], object)})
    with pytest.raises(CheckpointError, match="not an intact minijepa checkpoint"):
        load(saved[0])
    assert not (tmp_path / "planted").exists()


def test_a_full_disk_in_the_middle_of_a_file_leaves_the_previous_checkpoint(saved):
    """As the system reports it: no file may grow beyond 20 kB."""
    resource = pytest.importorskip("resource")
    path, model, optimizer = saved
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"can't write .*checkpoint.npz: File too large; what was there is"):
            checkpoint.save(path, model, optimizer, checkpoint.Progress(124), DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.npz"]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_whatever_call_fails_and_whenever_the_power_does_whole_checkpoints_are_there(saved, monkeypatch, links):
    """Each system call fails in turn, as on a full or broken disk; the message says what is there, and nothing else
    stays. Before and after every change of a name, both checkpoints can be found, whole and on the disk."""
    path, model, optimizer = saved
    previous, calls = path.with_name("checkpoint-previous.npz"), []
    checkpoint.save(path, model, optimizer, checkpoint.Progress(124), DATA)

    def steps():
        return [checkpoint.read(p)[0]["step"] for p in (previous, path)]

    def watched(name):
        real = getattr(os, name)

        def call(*args):
            calls.append(name)
            if len(calls) == failing:
                raise OSError(5, "Input/output error")
            if name == "link" and not links:
                raise PermissionError(1, "Operation not permitted")
            for act in (lambda: None, lambda: real(*args)):
                act()
                assert "fsync" in calls  # the new file's content was flushed before any name changes
                assert steps() in (before, [before[1]] * 2, [before[1], 200 + failing])

        return call

    for name in ("link", "replace", "fsync"):
        monkeypatch.setattr(os, name, watched(name))
    failed = 0
    for failing in range(7):
        before, content = steps(), path.read_bytes()
        calls.clear()
        try:
            checkpoint.save(path, model, optimizer, checkpoint.Progress(200 + failing), DATA)
        except CheckpointError as error:
            failed += 1
            assert str(error) == f"can't write {path}: Input/output error; what was there is untouched"
            assert path.read_bytes() == content
        else:
            assert steps() == [before[1], 200 + failing] and not os.path.samefile(previous, path)
        assert {p.name for p in path.parent.iterdir()} == {"checkpoint.npz", "checkpoint-previous.npz"}
        if not failing:  # the file, its copy where it can't be linked, the folder
            assert calls == ["fsync", "link", *["fsync"] * (not links), "replace", "replace", "fsync"]
    assert failed == (3 if links else 4)


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "pipe"])
def test_what_was_planted_in_the_folder_is_neither_written_through_nor_waited_for(saved, tmp_path, monkeypatch, kind):
    """Under the name that is written, the one before it, and the names in between, were they foreseen."""
    path, model, optimizer = saved
    outside = tmp_path / "outside"
    outside.write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "foreseen")

    def plant(place):
        place.unlink(missing_ok=True)
        {"symbolic link": place.symlink_to, "hard link": place.hardlink_to, "pipe": lambda _: os.mkfifo(place)}[kind](
            outside
        )

    for name in ("checkpoint.npz.foreseen.tmp", "checkpoint-previous.npz.foreseen.tmp"):
        plant(path.with_name(name))
        with pytest.raises(CheckpointError, match="checkpoint.npz: File exists; what was there is untouched"):
            checkpoint.save(path, model, optimizer, checkpoint.Progress(124), DATA)
        path.with_name(name).unlink(missing_ok=True)
    for name in ("checkpoint-previous.npz", "checkpoint.npz"):
        plant(path.with_name(name))
        checkpoint.save(path, model, optimizer, checkpoint.Progress(125), DATA)
        assert checkpoint.read(path)[0]["step"] == 125
    assert outside.read_text() == "mine"
    plant(path)
    with pytest.raises(CheckpointError, match="checkpoint.npz"):
        load(path)


def test_a_flipped_bit_is_refused_with_the_way_back_or_changes_nothing(saved):
    """In an array, its header, or the list of parts at the end of the file."""
    path, model, optimizer = saved
    checkpoint.save(path, model, optimizer, checkpoint.Progress(124, SUMS), DATA)
    whole, wanted = path.read_bytes(), checkpoint.read(path)
    with zipfile.ZipFile(path) as file:
        (info,) = [i for i in file.infolist() if i.filename == "model/context_encoder.pos_embed.npy"]
        directory = file.start_dir
    start = whole.index(b"\x93NUMPY", info.header_offset)  # of the array's own header, which is 128 bytes
    array = range(start, start + 128 + 4 * 64 * 16)
    places = [*range(info.header_offset, start, 7), *array[:128:5], *array[128::201]]
    places += range(directory, len(whole), 507)
    refused = 0
    for at in places:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            found = checkpoint.read(path)
            load(path)
        except CheckpointError as error:
            assert f"{path}" in str(error) and f"of step 123, is intact: cp {path.parent}/" in str(error)
            refused += 1
        else:
            assert at not in array
            np.testing.assert_equal(found, wanted)
    assert len(places) > 60 and refused > len(places) / 2


def test_a_lost_checkpoint_names_the_command_that_brings_the_one_before(saved):
    path, model, optimizer = saved
    checkpoint.save(path, model, optimizer, checkpoint.Progress(124), DATA)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint.npz.*; the one before it, of step 123, is intact") as error:
        load(path.parent)
    subprocess.run(str(error.value).partition("is intact: ")[2], shell=True, check=True)
    assert checkpoint.restore(path.parent, model, optimizer, DATA).step == 123


def test_two_damaged_checkpoints_promise_nothing(saved):
    path = saved[0]
    for name in ("checkpoint.npz", "checkpoint-previous.npz"):
        path.with_name(name).write_bytes(b"?")
    with pytest.raises(CheckpointError, match=r"checkpoint-previous.npz is no better$"):
        load(path)


@pytest.mark.parametrize("kind", ["empty", "other npz"])
def test_a_broken_file_is_one_line(saved, kind):
    saved[0].write_bytes(b"")
    if kind == "other npz":
        np.savez(saved[0], weights=np.ones(3))
    with pytest.raises(CheckpointError, match="checkpoint.npz is not an intact minijepa checkpoint") as error:
        load(saved[0])
    assert "\n" not in str(error.value)


def test_another_format_is_refused(saved):
    rewritten(saved[0], {"format": 99})
    with pytest.raises(CheckpointError, match="format 99, this version reads 2"):
        load(saved[0])


@pytest.mark.parametrize(
    "about",
    [{"step": -5}, {"step": "x"}, {"step": True}, {"step": 10**400}, {"step": 3.0}, {"images": 2**53}, {"sums": []},
     {"sums": {"loss": "low"}}, {"sums": SUMS | {"loss": 10**400}}, {"sums": SUMS | {"loss": 1e308}},
     {"sums": SUMS | {"loss": float("nan")}}, {"sums": SUMS | {"more": 1.0}}, {"sums": {"loss": 1.0}},
     {"mean": [None] * 3}, {"mean": [0.5] * 2}, {"mean": [0.5, 0.5, 1e308]}, {"std": [0.5, 0.5, 0.0]},
     {"std": [0.5, float("inf"), 0.5]}, {"std": "abc"}, {"optimizer_steps": None}, {"dataset": 3}, {"config": []},
     {"more": 1}],
    ids=lambda about: f"{about!r:.40}",
)  # fmt: skip
def test_an_altered_field_is_named(saved, about):
    rewritten(saved[0], about)
    for read in readers(*saved):
        with pytest.raises(CheckpointError, match=rf"checkpoint.npz: it.* field {min(about)}"):
            read()


MASK_TOKEN = np.zeros((1, 1, 8), np.float32)  # the shape of the array that is altered


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"adam_m/predictor.mask_token": np.zeros(1, np.float32)}, "its settings require 6,808 parameters, but it"),
        ({"adam_v/predictor.mask_token": np.zeros(1, np.float32)}, r"mask_token has shape \(1,\), the model's is"),
        ({"adam_v/predictor.mask_token": MASK_TOKEN - 1}, "mask_token must hold averages of squares, not -1.0"),
        ({"adam_m/more": np.zeros(0, np.float32)}, "has unknown 1 parameters, such as more"),
        ({"adam_v/more": MASK_TOKEN}, "has unknown 1 parameters, such as more"),
        ({"more": MASK_TOKEN}, "it has unknown arrays"),
        *(({"model/predictor.mask_token": values}, "must hold finite numbers of float32 or float64") for values in (
            MASK_TOKEN * np.nan, MASK_TOKEN + np.inf, MASK_TOKEN + np.float64(1e308), MASK_TOKEN.astype(int),
            MASK_TOKEN.astype(complex), MASK_TOKEN.astype("M8[s]"), MASK_TOKEN.astype(str), MASK_TOKEN.astype(">f4"),
            MASK_TOKEN.astype([("x", np.float32)]),
        )),
    ],
)  # fmt: skip
def test_an_altered_array_is_named(saved, arrays, words):
    rewritten(saved[0], **arrays)
    for read in readers(*saved):
        with pytest.raises(CheckpointError, match=f"checkpoint.npz.*{words}"):
            read()


def test_a_compressed_part_is_refused_before_it_is_unpacked(saved):
    """10 MB of zeros fit into 10 kB."""
    path = saved[0]
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/more.npy", bytes(10**7))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="parts are compressed"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_a_part_that_is_there_twice_is_refused(saved):
    with zipfile.ZipFile(saved[0], "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("model/predictor.mask_token.npy", file.read("model/predictor.mask_token.npy"))
    with pytest.raises(CheckpointError, match="a part occurs twice"):
        load(saved[0])


def test_no_larger_network_is_made_than_the_file_has_numbers_for(saved, monkeypatch):
    path, model, _ = saved
    monkeypatch.setattr(checkpoint, "IJEPA", None)  # calling it would fail
    rewritten(path, {"config": model.config.to_dict() | {"encoder_depth": 60, "encoder_embed_dim": 512}})
    with pytest.raises(CheckpointError, match="its settings require 189,212,040 parameters, but it holds 6,808"):
        load(path)
    rewritten(path, {"config": model.config.to_dict() | {"encoder_depth": 64, "encoder_embed_dim": 4096}})
    with pytest.raises(CheckpointError, match="num_parameters must be at most 268,435,456, got 12,8"):
        load(path)


@pytest.mark.parametrize(
    ("config", "data", "words"),
    [
        ({"encoder_embed_dim": 32}, {}, "written with encoder_embed_dim 16, not 32"),
        ({}, {"dataset": "shapes"}, "written with dataset cifar10, not shapes"),
        ({}, {"images": 49}, "written with images 50, not 49"),
    ],
)
def test_going_on_with_other_settings_or_other_images_is_refused(saved, config, data, words):
    model = IJEPA(Config(**(NETWORK | config)))
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
    other = IJEPA(Config(**(NETWORK | {"init_std": 0.08})))
    with pytest.raises(CheckpointError, match=r"written with init_std 0\.02, not 0\.08"):
        checkpoint.restore(path, other, optimizer, DATA)


def test_a_command_can_be_copied_whatever_the_folder_is_called():
    assert files.shell_word("runs/a") == "runs/a"
    assert files.shell_word("my runs/a") == "'my runs/a'"
    assert files.shell_word("-d") == "./-d"
