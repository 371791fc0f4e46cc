"""The network against a committed reference that an independent PyTorch float64 model made (tests/reference/)."""

import numpy as np
import pytest
from conftest import ROOT
from tiny import differentiate

from minijepa import IJEPA, Config
from minijepa.data.masking import Masks
from minijepa.gradcheck import gradient_error

FILE = ROOT / "tests" / "reference" / "reference.npz"
TOLERANCE = {np.float64: 1e-9, np.float32: 1e-4}


@pytest.fixture(scope="module")
def reference():
    with np.load(FILE, allow_pickle=False) as file:
        return {name: file[name] for name in file}


def part(reference, prefix):
    return {name.removeprefix(prefix): value for name, value in reference.items() if name.startswith(prefix)}


def build(reference, dtype, **changes):
    settings = {name: value.item() for name, value in part(reference, "config/").items()}
    settings |= {"target_scale": (0.15, 0.25), "min_context": 1}
    model = IJEPA(Config(**settings, **changes), dtype=dtype)
    model.load_state_dict(part(reference, "param/"))
    masks = Masks(*(reference[k] for k in ("context_lengths", "context_index", "target_lengths", "target_index")))
    return model, reference["images"].astype(dtype), masks


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_features_targets_and_predictions(reference, dtype):
    model, images, masks = build(reference, dtype)
    for encoder in ("target", "context"):
        found = model.encode(images, encoder).data
        assert gradient_error(reference[f"features_{encoder}"], found) < TOLERANCE[dtype], encoder
    assert gradient_error(reference["targets"], model.targets(images, masks).data) < TOLERANCE[dtype]
    predictions = model.predictions(images, masks)
    assert predictions.dtype == dtype
    assert gradient_error(reference["predictions"], predictions.data) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("settings", "loss_name", "gradient_prefix"),
    [({}, "loss", "grad/"), ({"loss": "smooth_l1", "target_norm": "layer_norm"}, "smooth_l1_loss", "smooth_l1_grad/")],
)
def test_loss_and_gradients(reference, dtype, settings, loss_name, gradient_prefix):
    model, images, masks = build(reference, dtype, **settings)
    loss = differentiate(lambda: model.loss(images, masks))
    assert loss.dtype == dtype
    assert gradient_error(reference[loss_name], loss.data) < TOLERANCE[dtype]
    gradients, wanted = model.gradients(), part(reference, gradient_prefix)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        assert gradient_error(wanted[name], gradient) < TOLERANCE[dtype], name
