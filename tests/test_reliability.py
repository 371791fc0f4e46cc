"""Nothing lost, nothing drifting: runs that are killed at any moment, and numbers that are held to earlier ones."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_same_run, write_cifar

from minijepa import Config
from minijepa.data import Dataset
from minijepa.training import Trainer

ROOT = Path(__file__).parent.parent
LOSSES = ROOT / "tests" / "reference" / "losses.json"
NETWORK = dict(
    encoder_embed_dim=16, encoder_depth=2, encoder_num_heads=2, predictor_embed_dim=8, predictor_depth=2,
    predictor_num_heads=2,
)  # fmt: skip
KILLS = int(os.environ.get("MINIJEPA_KILLS", "20"))  # a longer campaign: MINIJEPA_KILLS=500


# ------------------------------------------------------------------------------------------------- killed at any moment


def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(tmp_path):
    """SIGKILL lets nothing be tidied up. The run goes on every time, and ends with the same bits and the same rows."""
    data = write_cifar(tmp_path, 20, 20, spread=30)
    settings = NETWORK | dict(batch_size=20, epochs=5, warmup_epochs=1, augment_flip=True, augment_crop=4, knn_every=2)

    def start(folder):
        changes = [f"--set={key}={value}" for key, value in settings.items()]
        command = [sys.executable, "train.py", "--device=cpu", "--threads=1"]
        command += [f"--data-dir={data}", f"--run-dir={folder}", *(["--resume"] if folder.exists() else changes)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.perf_counter()
    with start(whole) as process:
        assert process.wait(120) == 0
    duration = time.perf_counter() - began

    draw, kills = random.Random(0), 0
    while True:
        process = start(killed)
        try:
            error = process.communicate(timeout=None if kills == KILLS else draw.uniform(0.3, 1.0) * duration)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            if not (killed / "checkpoint.npz").exists():  # before there was anything to lose
                shutil.rmtree(killed, ignore_errors=True)
            continue
        assert process.returncode == 0, error.decode()
        assert_same_run(killed, whole)
        if kills == KILLS:
            break
        shutil.rmtree(killed)


# -------------------------------------------------------------------------------------------------- numbers don't drift


def first_losses(steps=20):
    """The losses of a tiny run in float64 on noise: data, masks, augmentation, network, AdamW, EMA and schedules."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (60, 3, 32, 32), np.uint8), draw.integers(0, 10, 60).astype(np.uint8)
    data = Dataset("noise", tuple("abcdefghij"), images, labels, images[:5], labels[:5], (0.5,) * 3, (0.25,) * 3)
    config = Config(
        **NETWORK, batch_size=20, epochs=8, warmup_epochs=1, augment_flip=True, augment_crop=4,
        target_norm="layer_norm", ema_momentum_start=0.9,
    )  # fmt: skip
    trainer = Trainer(config, data, dtype=np.float64)
    return [trainer.train_step(step)["loss"] for step in range(steps)]


def test_the_first_losses_are_those_of_earlier_versions():
    """``PYTHONPATH=. python tests/test_reliability.py`` writes them anew, where a change is meant to change them."""
    np.testing.assert_allclose(first_losses(), json.loads(LOSSES.read_text()), rtol=1e-9)


def test_the_same_seed_gives_the_same_bits_in_a_new_process():
    code = "import sys; sys.path.insert(0, 'tests'); import test_reliability as t; print(t.first_losses(5))"
    command = [sys.executable, "-c", code]
    found = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert found[0] == found[1] == f"{first_losses(5)}\n"


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_the_program_at_once(signal_name):
    """The first is noted and the step finished; whoever can't wait sends another."""
    code = f"""
import os, signal
from minijepa.run import Interruptible
with Interruptible() as interrupted:
    os.kill(os.getpid(), signal.{signal_name})
    assert interrupted.signal == signal.{signal_name}
    os.kill(os.getpid(), signal.{signal_name})
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == ({"SIGINT": 130, "SIGTERM": 143}[signal_name], "")


if __name__ == "__main__":
    LOSSES.write_text(json.dumps(first_losses(), indent=0) + "\n")
