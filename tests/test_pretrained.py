"""The trained encoders in pretrained/: each loads, and gives the features and classes that it gave when it was made."""

import json
from pathlib import Path

import numpy as np
import pytest

from minijepa import load
from minijepa.data import make_shapes

FOLDER = Path(__file__).parent.parent / "pretrained"
FILES = sorted(path for path in FOLDER.glob("*.npz") if not path.name.startswith("classifier-"))  # probe.py's
RECORDED = Path(__file__).parent / "reference/pretrained.json"


def answers(name):
    """What a file says of four drawn images: their first eight features, and the probability of each class."""
    model = load(FOLDER / name)
    features = model.features(make_shapes(4, seed=7)[0])
    probabilities = model.classifier.probabilities(features)
    return {"features": features[:, :8].tolist(), "probabilities": probabilities.tolist()}


def test_every_file_is_recorded_described_and_small():
    files = {path.name: path.stat().st_size for path in FILES}
    assert files.keys() == json.loads(RECORDED.read_text()).keys() and sum(files.values()) < 12e6
    assert all(f"`{name}`" in (FOLDER / "README.md").read_text() for name in files)


@pytest.mark.parametrize("name", [path.name for path in FILES])
def test_answers_are_those_that_were_recorded(name):
    recorded = json.loads(RECORDED.read_text())[name]
    for kind, values in answers(name).items():
        np.testing.assert_allclose(values, recorded[kind], rtol=0, atol=1e-4, err_msg=kind)


if __name__ == "__main__":  # python -m tests.test_pretrained: record what the files say now
    RECORDED.write_text(json.dumps({path.name: answers(path.name) for path in FILES}) + "\n")
