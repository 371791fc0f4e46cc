"""train.py as people type it: short runs, sizes out of reach, paths, numbers of runs."""

import os
from pathlib import Path

import pytest
from conftest import write_cifar
from tiny import NETWORK, command, flags, raising

import train
from minijepa.cli import counted
from minijepa.config import PRESETS, Config
from minijepa.pictures.canvas import Sheet
from minijepa.training import run as run_module

TINY = flags(NETWORK)


@pytest.fixture
def train_cli(cifar_folder, tmp_path, monkeypatch, capsys):
    """Run train.py in an empty folder, on the 80 images of ``cifar_folder``: (exit status, stdout, stderr)."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(train, "draw_features", lambda probed: None)  # the pictures at the end take the most time

    def run(*args, data=True):
        return command(capsys, train.main, "--device=cpu", "--threads=1", *[f"--data-dir={cifar_folder}"] * data, *args)

    return run


@pytest.mark.parametrize(("preset", "epochs"), [("cifar10", 1), ("smoke", 2)])
def test_a_short_run_just_works_and_tells_a_warm_up_that_is_not_the_presets(train_cli, preset, epochs):
    status, out, _ = train_cli(f"--preset={preset}", f"--epochs={epochs}", "--run-dir=run", *TINY)
    assert status == 0
    warmup = run_module.read_run("run")["config"]["warmup_epochs"]
    assert warmup == Config.preset(preset, epochs=epochs).warmup_epochs
    line = f"the warm-up is {warmup:g} of {counted(epochs, 'epoch')}, the preset's share: --set"
    assert out.count(line) == out.count("warm-up") == (warmup != Config.preset(preset).warmup_epochs)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_warm_up_for_any_number_of_epochs(preset):
    own = Config.preset(preset)
    for epochs in (1, 2, 5, 10, 11, 1000):
        share = epochs * own.warmup_epochs / own.epochs
        kept = epochs > own.warmup_epochs
        assert Config.preset(preset, epochs=epochs).warmup_epochs == (own.warmup_epochs if kept else round(share, 3))
    assert Config.preset(preset, epochs=5, warmup_epochs=2).warmup_epochs == 2  # what is asked for is not changed
    with pytest.raises(ValueError, match="warmup_epochs 10 must be below epochs 5: lower it too, or set it to 0"):
        Config.preset(preset, epochs=5, warmup_epochs=10)


def test_a_batch_or_limit_beyond_the_data_is_reported_and_the_real_size_recorded(train_cli):
    args = ("--batch-size=5000", "--epochs=1", "--set=max_train_images=1000", "--run-dir=run", *TINY)
    status, out, _ = train_cli(*args)
    assert status == 0
    assert "batches have 80 images, not 5,000: there are no more\n" in out
    assert "max_train_images is 1,000, but there are only 80 training images\n" in out
    assert run_module.read_run("run")["config"]["batch_size"] == 80
    status, out, _ = train_cli("--run-dir=run", "--resume")
    assert status == 0 and "no more" not in out


def test_one_is_singular(train_cli):
    status, out, _ = train_cli("--batch-size=80", "--epochs=1", "--set=warmup_epochs=0", "--run-dir=run", *TINY)
    assert status == 0 and ": cifar10, 80 images, 1 epoch of 1 step, " in out and "on cpu with 1 worker\n" in out
    status, out, _ = train_cli("--batch-size=8", "--set=max_train_images=56", "--epochs=1", "--run-dir=seven", *TINY)
    assert status == 0 and " for 1 more step, without evaluations\n" in out  # the time is estimated after the sixth
    assert [counted(n, "step") for n in (0, 1, 2, 1200)] == ["0 steps", "1 step", "2 steps", "1,200 steps"]


def test_a_tilde_is_the_home_folder_also_after_an_equals_sign(train_cli, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    write_cifar(tmp_path / "home", 16, 20)
    args = ("--data-dir=~/data", "--run-dir=~/run", "--epochs=1", "--set=warmup_epochs=0", *TINY)
    status, out, _ = train_cli(*args, data=False)
    assert status == 0 and f"{tmp_path}/home/run: cifar10, 80 images" in out
    assert not (tmp_path / "work" / "~").exists()


def test_runs_that_start_at_once_get_numbers_of_their_own(train_cli, tmp_path, monkeypatch):
    """The second has chosen its name when the first one, and a third, take it and the next."""
    make = run_module.Run.create
    taken = iter(["runs/smoke", "runs/smoke-2"])

    def create(run, about):
        if (name := next(taken, None)) is not None:
            (tmp_path / "work" / name).mkdir(parents=True)
            (tmp_path / "work" / name / "config.json").write_text("{}")
        make(run, about)

    monkeypatch.setattr(run_module.Run, "create", create)
    status, out, _ = train_cli("--preset=smoke", "--epochs=1", *TINY)
    runs = tmp_path / "work" / "runs"
    assert status == 0 and "runs/smoke-3: cifar10" in out
    assert sorted(path.name for path in runs.iterdir()) == ["smoke", "smoke-2", "smoke-3"]
    assert [path.name for path in (runs / "smoke").iterdir()] == ["config.json"]


def test_an_empty_folder_will_do_and_another_is_named_for_what_it_is(train_cli, tmp_path):
    work, args = tmp_path / "work", ("--preset=smoke", "--epochs=1", "--run-dir=run", *TINY)
    (work / "run").mkdir()
    (work / "run" / "notes.txt").write_text("mine")
    status, _, err = train_cli(*args)
    assert status == 2 and err == "train.py: run is not empty and holds no run: choose another --run-dir\n"
    (work / "run" / "notes.txt").unlink()
    assert train_cli(*args)[0] == 0 and train_cli("--run-dir=run", "--resume")[0] == 0
    status, _, err = train_cli(*args)
    assert status == 2 and err == "train.py: run exists: go on with --resume, or choose another --run-dir\n"
    (work / "file").write_text("")
    status, _, err = train_cli("--run-dir=file", *TINY)
    assert status == 2 and err == "train.py: file is a file: choose another --run-dir\n"


def test_an_empty_folder_that_cannot_be_replaced_says_what_to_do(train_cli, tmp_path, monkeypatch):
    """A mounted volume, say, or any on Windows."""
    (tmp_path / "work" / "run").mkdir()

    monkeypatch.setattr(Path, "rename", raising(OSError(16, "Device or resource busy")))
    status, _, err = train_cli("--preset=smoke", "--epochs=1", "--run-dir=run", *TINY)
    assert status == 2 and err == (
        "train.py: can't make the run folder run: Device or resource busy; give a new folder inside it: --run-dir "
        "run/run\n"
    )
    assert list((tmp_path / "work" / "run").iterdir()) == [] and len(list((tmp_path / "work").iterdir())) == 1


@pytest.mark.parametrize(("file", "saved"), [("metrics.csv", 0), ("pca.png", 1)])
def test_a_disk_that_gets_full_names_the_way_on(train_cli, monkeypatch, file, saved):
    """At an epoch's end, and with the pictures at the end."""
    sync, full = os.fsync, []

    def fsync(file):
        if full:
            raise OSError(28, "No space left on device")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        if file == "metrics.csv":
            step = train.Trainer.train_step
            patch.setattr(train.Trainer, "train_step", lambda *args: [step(*args), full.append(1)][0])
        else:
            patch.setattr(train, "draw_features", lambda probed: [full.append(1), Sheet(9, 9, "").saved("run/pca.png")])
        status, _, err = train_cli("--preset=smoke", "--epochs=1", "--run-dir=run", *TINY)
    assert status == 2 and err == (
        f"train.py: can't write run/{file}: No space left on device; what was there is untouched; step {saved} is "
        "saved: fix that, then use --resume\n"
    )
    assert train_cli("--run-dir=run", "--resume")[0] == 0
