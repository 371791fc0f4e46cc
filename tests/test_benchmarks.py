"""benchmarks/step.py, at a small size and without PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minijepa import Config

STEP = Path(__file__).parent.parent / "benchmarks/step.py"


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
