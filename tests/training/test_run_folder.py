"""A run's folder: nobody else's is written into, and config.json tells where the run comes from."""

import json
import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import begun
from test_reliability import tiny_trainer
from tiny import contents, raising

from minijepa.errors import CheckpointError, ConfigError
from minijepa.evaluation.gallery import gallery_of_trainer
from minijepa.training import clock as clock_module
from minijepa.training import provenance
from minijepa.training.metrics import read_metrics
from minijepa.training.run import Run, read_run


def short_trainer(**changes):
    return tiny_trainer(epochs=1, warmup_epochs=0, knn_every=0, keep_every=1, **changes)


@pytest.mark.parametrize("successor", [True, False], ids=["another run", "nothing"])
def test_a_run_writes_nothing_where_its_folder_was(tmp_path, successor):
    """mv x y, and then another run begins in x."""
    x, y = tmp_path / "x", tmp_path / "y"
    run = begun(x, short_trainer())
    x.rename(y)
    if successor:
        begun(x, short_trainer(seed=1))
    before = contents(tmp_path / ("x" if successor else "y"))
    for write in (run._write_rows, run.save, lambda: run._keep(1), lambda: gallery_of_trainer(run)):
        with pytest.raises(ConfigError, match=f"^{x} was moved, removed or replaced by another folder"):
            write()
    with pytest.raises(ConfigError, match="use --resume where the run is now"):
        run.train()
    assert contents(tmp_path / ("x" if successor else "y")) == before and x.exists() == successor
    moved = Run(y, short_trainer())
    moved.resume()
    assert moved.train() == 0 and len(read_metrics(y)) == 1


def test_a_folder_that_is_moved_while_a_file_is_written_keeps_its_successor_whole(tmp_path, monkeypatch):
    x, y = tmp_path / "x", tmp_path / "y"
    run, savez = begun(x, short_trainer()), np.savez

    def meanwhile(*args, **kwargs):
        monkeypatch.setattr(np, "savez", savez)
        savez(*args, **kwargs)
        x.rename(y)
        begun(x, short_trainer(seed=1))
        before.update(contents(x))

    before = {}
    monkeypatch.setattr(np, "savez", meanwhile)
    with pytest.raises(CheckpointError, match="x/checkpoint.npz: its folder was moved or replaced"):
        run.save()
    assert contents(x) == before
    run._unlock()
    moved = Run(y, run.trainer)
    moved.resume()
    assert not list(y.glob("*.tmp"))


def test_the_folder_is_locked_until_what_comes_after_the_last_step_is_done(tmp_path):
    pytest.importorskip("fcntl")
    other = Run(tmp_path / "x", short_trainer())

    def then():
        with pytest.raises(ConfigError, match="another process is training in"):
            other.resume()

    begun(tmp_path / "x", short_trainer()).train(then=then)
    other.resume()


def test_what_a_kill_left_of_files_on_their_way_goes_when_the_run_goes_on(tmp_path):
    run = begun(tmp_path / "x", short_trainer())
    left = {"checkpoint.npz.0a1b2c3d.tmp", "checkpoint-0005.npz.0a1b2c3d.tmp", "pca.png.ffffffff.tmp"}
    others = {"notes.tmp", "notes.from.me.tmp"}
    for name in left | others:
        (run.folder / name).write_text("?")
    run._unlock()
    run.resume()
    assert set(contents(run.folder)) & (left | others) == others


def test_a_refusal_while_the_folder_is_made_names_the_folder_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", raising(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match=f"^can't write {tmp_path}/x/checkpoint.npz: No space left on device"):
        begun(tmp_path / "x", short_trainer())
    assert not list(tmp_path.iterdir())


def test_a_clock_that_stands_still_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: 5.0))
    run = begun(tmp_path / "x", short_trainer())
    assert run.train() == 0
    assert read_metrics(run.folder)[0]["images_per_s"] == "nan"


# ------------------------------------------------------------------------------------------------ where it comes from


def test_config_json_tells_where_a_run_comes_from_and_with_what_it_went_on(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--run-dir", "a b"])
    run, said = begun(tmp_path / "x", short_trainer()), []
    made = read_run(run.folder)["made"]
    assert made["command"] == "train.py --run-dir 'a b'"
    assert re.fullmatch(r"\d+\.\d+.*", made["version"]) and made["numpy"] == np.__version__
    assert made["blas"].keys() == {"name", "version", "kernel", "threads"} and made["blas"]["threads"] in (1, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", made["date"])
    assert (made["device"], made["threads"]) == ("cpu", 1) and made["python"].startswith("3.")
    assert made["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", made["commit"])

    def resume():
        run._unlock()
        run.resume(said.append)
        return read_run(run.folder)

    assert resume()["resumed"][0].items() >= {**made, "step": 0, "date": resume()["resumed"][0]["date"]}.items()
    assert not said
    monkeypatch.setattr(provenance, "blas_info", lambda: {**made["blas"], "kernel": "Prescott"})
    for _ in range(2):  # the second time, it is what it was the last time
        about = resume()
    assert [entry["blas"]["kernel"] for entry in about["resumed"][-2:]] == ["Prescott", "Prescott"]
    (line,) = said
    kernel = made["blas"]["kernel"]
    assert line == (
        f"last digits will differ from those of a run without the interruption: BLAS kernel was {kernel}, is Prescott"
    )
    assert about["made"] == made


def test_another_gpu_changes_the_last_digits():
    made = {"device": "cuda", "gpu": {"name": "H100", "cupy": "14.1"}}
    assert provenance.changes(made, made | {"gpu": {"name": "H200", "cupy": "14.1"}}) == "GPU name was H100, is H200"


ODD = [None, 3, {}, {"blas": 7, "numpy": [10**400]}, {"blas": {"x": "y" * 9999}}]


@pytest.mark.parametrize("made", ODD, ids=range(len(ODD)))
def test_an_odd_provenance_does_not_keep_a_run_from_going_on(tmp_path, made):
    run, said = begun(tmp_path / "x", short_trainer()), []
    about = read_run(run.folder) | {"made": made, "resumed": made}
    (run.folder / "config.json").write_text(json.dumps(about))
    run._unlock()
    run.resume(said.append)
    assert all(len(line) < 500 for line in said) and len(read_run(run.folder)["resumed"]) == 1


def test_the_commit_is_that_of_the_sources_or_none(tmp_path):
    if not shutil.which("git"):
        pytest.skip("git is not installed")

    def git(*args):
        person = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", "-C", str(tmp_path), *person, *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "-m", "one")
    head = git("rev-parse", "HEAD")
    package = tmp_path / "site-packages"
    package.mkdir()
    assert provenance.commit(package) is None  # that repository is not the package's
    assert provenance.commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    provenance.commit.cache_clear()
    assert provenance.commit(tmp_path) == f"{head}-dirty"
    os.rename(tmp_path / ".git" / "HEAD", tmp_path / ".git" / "TAIL")
    provenance.commit.cache_clear()
    assert provenance.commit(tmp_path) is None
