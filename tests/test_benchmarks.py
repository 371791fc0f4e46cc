"""The scripts in benchmarks/, at a small size and without PyTorch."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_cifar

from minijepa import Config
from minijepa.errors import ConfigError

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
STEP = BENCHMARKS / "step.py"


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import ablation

    return ablation


@pytest.fixture
def screen(ablation):
    import screen

    return screen


def test_step_measures_this_project_alone():
    command = [sys.executable, str(STEP), "--preset", "smoke", "--rounds", "1", "--threads", "2", "--alone"]
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)
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


@pytest.mark.parametrize("options", ["--rounds 0", "--device cuda --alone", "--device cuda --preset smoke"])
def test_step_refuses_what_it_cannot_do(options):
    done = subprocess.run([sys.executable, str(STEP), *options.split()], capture_output=True, text=True)
    assert done.returncode == 2 and "step.py: error: --" in done.stderr and not done.stdout


def test_an_ablation_trains_every_setting_once_and_goes_on(tmp_path, ablation, monkeypatch):
    out = tmp_path / "out"
    small = dict(encoder_embed_dim=24, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=16, predictor_depth=1,
                 predictor_num_heads=2, epochs=1, warmup_epochs=0)  # fmt: skip
    options = [f"--set={name}={value}" for name, value in small.items()]
    options += ["--data-dir", str(write_cifar(tmp_path, 1040, 20, spread=60)), "--out", str(out)]

    def run(*extra):
        assert ablation.main(ablation.parser().parse_args([*options, *extra])) == 0
        with open(out / "ablation.csv", newline="") as file:
            return {row["setting"]: row for row in csv.DictReader(file)}

    rows = run("base", "rate x 2", "--seeds", "0")
    assert rows.keys() == {"base", "rate x 2"}
    for setting, row in rows.items():
        assert row["step"] == "3" and row["seed"] == "0"  # 200 of 5,200 images in batches of 64: the rest is held back
        assert 0.2 < float(row["linear_probe"]) < 0.9 and 0.2 < float(row["knn"]) < 0.9  # grey tells the class, nearly
        config = json.loads((out / f"{setting.replace(' ', '-')}-seed0" / "config.json").read_text())["config"]
        assert config["val_size"] == 5000
        assert config["base_lr"] == Config.preset("laptop").base_lr * (2 if setting == "rate x 2" else 1)

    (out / "base-seed0" / "ablation.json").unlink()  # trained but not probed: it is not trained again
    checkpoint = (out / "base-seed0" / "checkpoint.npz").stat().st_mtime_ns
    assert run("base", "--seeds", "0") == rows  # and the other's row stays
    assert (out / "base-seed0" / "checkpoint.npz").stat().st_mtime_ns == checkpoint

    monkeypatch.setattr(ablation, "train", lambda *args: pytest.fail("trained again"))
    assert run("base", "rate x 2", "--seeds", "0") == rows
    with pytest.raises(ConfigError, match="is a run with other settings"):
        run("base", "--seeds", "0", "--set", "epochs=2")


@pytest.mark.parametrize("options", ["nope", "base --jobs 0", "base --threads 0", "base --seeds -1", "--set epochs=0"])
def test_an_ablation_refuses_what_it_cannot_do(options, tmp_path):
    command = [sys.executable, str(BENCHMARKS / "ablation.py"), *options.split(), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("ablation.py: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["recipe", "refined"])
def test_a_screen_finds_the_effects_that_are_there(screen, name, rng):
    prime, factors = screen.SCREENS[name]
    runs = np.array(screen.design(prime))
    assert runs.shape == (prime + 1, prime) and len(factors) < prime
    np.testing.assert_array_equal(runs.T @ runs, (prime + 1) * np.eye(prime))  # no factor goes along with another
    np.testing.assert_array_equal(runs.sum(axis=0), 0)
    there = rng.standard_normal(prime)
    np.testing.assert_allclose(screen.effects(list(40 + runs @ there / 2), runs.tolist()), there, atol=1e-12)
