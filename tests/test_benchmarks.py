"""The scripts in benchmarks/, at a small size and without PyTorch."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from unittest.mock import Mock

import ablation
import blas
import contenders
import numpy as np
import profile_step
import pytest
import step
from conftest import ROOT, output, python, write_cifar
from tiny import flags

from minijepa import Config, Tape
from minijepa.data import load_dataset
from minijepa.errors import ConfigError
from minijepa.evaluation import evaluate
from minijepa.training.trainer import Trainer

BENCHMARKS = ROOT / "benchmarks"
STEP = BENCHMARKS / "step.py"


def test_step_measures_this_project_alone():
    options = ["--preset", "smoke", "--rounds", "1", "--threads", "2", "--alone", "--json"]
    found = json.loads(output(STEP, *options))
    assert min(found[name] for name in ("img_s", "encode_img_s", "threads_speedup", "gemm_share")) > 0
    assert 0 < found["step_mb"] < found["peak_mb"]
    for kind in ("padded", "sorted", "shared", "encode"):
        assert found[f"torch_{kind}_img_s"] is None and found[f"ratio_{kind}"] is None

    c = Config.preset("smoke")
    d, n = c.encoder_embed_dim, c.num_patches
    layers, attention = 2 * n * 12 * d * d, 2 * 2 * n * n * d  # of a block: qkv, projection and MLP; scores, values
    encoding = c.encoder_depth * (layers + attention) + 2 * n * 3 * c.patch_size**2 * d
    assert 1e9 * found["encode_gflop_per_image"] == pytest.approx(encoding, rel=0.02)  # the rest: sums as products
    assert found["gflop_per_image"] > 2 * found["encode_gflop_per_image"]


def test_a_blas_that_its_environment_slows_down_is_named(monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    assert blas.line().startswith("BLAS: ") and "slows" not in blas.line()
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    monkeypatch.setattr(blas, "gflops", lambda: 1.0)  # this process; the other one measures
    assert re.search(r": OPENBLAS_CORETYPE=Prescott slows it down, to 1 of the \d+ GFLOP/s of ", blas.line())


@pytest.mark.skipif(not importlib.util.find_spec("mpi4py"), reason="no MPI: pip install -r requirements-mpi.txt")
def test_step_compares_workers_with_mpiexec():
    options = ["--mpi", "--preset", "smoke", "--rounds", "1", "--threads", "2", "--json"]
    found = json.loads(output(STEP, *options))
    assert found["ratio"] == found["img_s_ranks"] / found["img_s_workers"] > 0
    assert {name: len(turns) for name, turns in found["turns"].items()} == {"workers": 1, "ranks": 1, "one": 1}


@pytest.mark.parametrize(
    "options",
    ["--rounds 0", "--device cuda --alone", "--device cuda --preset smoke", "--mpi --device cuda", "--mpi --threads 9"],
)
def test_step_refuses_what_it_cannot_do(options):
    done = python(STEP, *options.split())
    assert done.returncode == 2 and "step.py: error: --" in done.stderr and not done.stdout


def test_a_contender_that_fails_is_left_out_and_gives_status_1(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["step.py", "--rehearse", "--rounds=1"])
    monkeypatch.setattr(contenders, "ON_GPU", {"wrong": ("nowhere", {})})
    assert step.main() == 1
    assert "wrong: a contender failed: see its traceback above" in capfd.readouterr().err


def test_a_part_that_gpu_sh_does_not_have_is_refused(tmp_path):
    command = ["bash", str(BENCHMARKS / "gpu.sh"), str(tmp_path), "data", "test"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"REHEARSE": "1"})
    assert (done.returncode, done.stderr) == (2, "gpu.sh: no part 'test'\n")


@pytest.fixture
def small_ablation(tmp_path, monkeypatch):
    """main() of an ablation of a tiny network on noise around a grey that tells the class: its status."""
    small = dict(encoder_embed_dim=24, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=16, predictor_depth=1,
                 predictor_num_heads=2, epochs=1, warmup_epochs=0)  # fmt: skip
    monkeypatch.setattr(ablation, "HELD_BACK", 400)
    data = write_cifar(tmp_path, 120, 20, spread=60)
    arguments = [*flags(small), f"--data-dir={data}", f"--out={tmp_path / 'out'}", "--seeds", "0"]
    return lambda *options: ablation.main(ablation.parser().parse_args([*arguments, *options]))


def rows_of(folder):
    with open(folder / "ablation.csv", newline="") as file:
        return {row["setting"]: row for row in csv.DictReader(file)}


def test_an_ablation_trains_every_setting_once_and_goes_on(tmp_path, small_ablation, monkeypatch):
    monkeypatch.setattr(evaluate, "linear_probe", probe := Mock(wraps=evaluate.linear_probe))
    out = tmp_path / "out"

    assert small_ablation("--", "base", "rate x 2") == 0
    rows = rows_of(out)
    assert rows.keys() == {"base", "rate x 2"}
    for setting, row in rows.items():
        assert row["step"] == "3" and row["seed"] == "0"  # 200 of 600 images in batches of 64: the rest is held back
        assert 0.2 < float(row["linear_probe"]) < 0.9 and 0.2 < float(row["knn"]) < 0.9
        config = json.loads((out / f"{setting.replace(' ', '-')}-seed0" / "config.json").read_text())["config"]
        assert config["val_size"] == 400
        assert config["base_lr"] == Config.preset("laptop").base_lr * (2 if setting == "rate x 2" else 1)
    assert probe.call_count == 2
    for call in probe.call_args_list:  # and not the test set
        np.testing.assert_array_equal(np.sort(call.args[3]), np.repeat(np.arange(10), 40))

    (out / "base-seed0" / "ablation.json").unlink()  # trained but not probed: it is not trained again
    checkpoint = (out / "base-seed0" / "checkpoint.npz").stat().st_mtime_ns
    assert small_ablation("--", "base") == 0
    assert rows_of(out) == rows  # the other's row stays
    assert (out / "base-seed0" / "checkpoint.npz").stat().st_mtime_ns == checkpoint

    monkeypatch.setattr(ablation, "train", lambda *args: pytest.fail("trained again"))
    assert small_ablation("--", "base", "rate x 2") == 0
    with pytest.raises(ConfigError, match="is a run with other settings"):
        small_ablation("--set=min_lr=1e-6", "--", "base")
    for setting in ("val_size=100", "seed=3"):  # what is always the same, and what --seeds gives
        with pytest.raises(ConfigError, match=f"--set {setting}: (it is always 400|give --seeds)"):
            small_ablation(f"--set={setting}", "--", "base")


@pytest.mark.parametrize("change", ["max_train_images=50", "batch_size=300"])  # 200 are left
def test_an_ablation_of_fewer_images_than_a_batch_goes_on_too(small_ablation, monkeypatch, change):
    few = f"--set={change}", "--", "base"
    assert small_ablation(*few) == 0
    monkeypatch.setattr(ablation, "train", lambda *args: pytest.fail("trained again"))
    assert small_ablation(*few) == 0


def test_a_run_that_fails_leaves_an_ablation_its_others(tmp_path, small_ablation, monkeypatch, capsys):
    settings = {"hopeless": dict(base_lr=1e20), "base": {}, "rate x 2": dict(base_lr=2)}
    monkeypatch.setattr(ablation, "SETTINGS", settings)
    assert small_ablation("--jobs=1") == 1
    assert rows_of(tmp_path / "out").keys() == {"base", "rate x 2"}
    out = capsys.readouterr().out
    assert f"hopeless, seed 0: training failed: see {tmp_path / 'out' / 'hopeless-seed0'}.log" in out
    assert "| base | 1 |" in out and "| hopeless" not in out
    assert "the loss is nan" in (tmp_path / "out" / "hopeless-seed0.log").read_text()


def test_an_ablation_prints_means_and_ranges_best_first():
    found = {"base": [(0.5, 0.4), (0.53, 0.44)], "wide masks": [(0.52, 0.3)]}
    rows = [dict(setting=name, linear_probe=probe, knn=knn) for name, seeds in found.items() for probe, knn in seeds]
    assert ablation.table(rows).splitlines()[2:] == [
        "| wide masks | 1 | 52.00 | 52.00 to 52.00 | 30.00 | 30.00 to 30.00 |",
        "| base | 2 | 51.50 | 50.00 to 53.00 | 42.00 | 40.00 to 44.00 |",
    ]


@pytest.mark.parametrize("options", ["nope", "base --jobs 0", "base --threads 0", "base --seeds -1", "--set epochs=0"])
def test_an_ablation_refuses_what_it_cannot_do(options, tmp_path):
    done = python(BENCHMARKS / "ablation.py", *options.split(), "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.startswith("ablation.py: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_profile_adds_up(capsys):
    changes = {"max_train_images": 20, "batch_size": 20, "epochs": 3, "warmup_epochs": 0}
    config = Config.preset("smoke", **changes)
    assert profile_step.main(["--preset=smoke", *flags(changes)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("BLAS: ")
    for name in ("masks", "data", "target encoder", "context encoder", "predictor", "backward", "optimiser", "EMA"):
        assert f"\n{name} " in out, name
    phases, operations = out[out.index("phase") :].split("\n\n")
    *lines, preparation = phases.splitlines()[1:]
    shares = {line.split("  ")[0]: float(line.rsplit(maxsplit=1)[1].rstrip("%")) for line in lines}
    assert sum(shares.values()) == pytest.approx(100, abs=1)
    assert preparation.startswith("masks + data + layout ")
    parts = shares["masks"] + shares["data"] + shares["layout"]
    assert float(preparation.rsplit(maxsplit=1)[1].rstrip("%")) == pytest.approx(parts, abs=0.2)
    assert all(op in operations for op in ("linear", "attention", "gelu", "layer_norm", "l2_loss"))
    trainer = Trainer(config, load_dataset("shapes", "data"))
    images, masks = trainer.batch(1)
    with Tape() as tape:
        trainer.model.loss(images[:16], masks.select(np.arange(16)))
        trainer.model.loss(images[16:], masks.select(np.arange(16, 20)))  # the step's chunks
    saved = {line.split()[0]: float(line.split()[-1]) for line in operations.splitlines()[1:-1]}
    for op in ("linear", "attention"):
        wanted = sum(row[3] for row in tape.lines() if row[0] == op) / 1e6
        assert saved[op] == pytest.approx(wanted, rel=0.05) and wanted > 0.1
    with pytest.raises(SystemExit):
        profile_step.main(["--steps=0"])
