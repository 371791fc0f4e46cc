"""What a notebook shows, and the short forms that a prompt shows."""

import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest

from minijepa import IJEPA, Config, Parameter, Tape, Tensor, load, ops
from minijepa.training import exported


def page(shown):
    """Rows of cells, the styles of cells, and all text of what a notebook shows, whose tags must close in order."""
    root = ElementTree.fromstring(shown._repr_html_())
    rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    styles = [cell.get("style") for row in root.iter("tr") for cell in row]
    return SimpleNamespace(rows=rows, styles=styles, text="".join(root.itertext()))


def test_a_tensor_shows_its_values_and_their_sign():
    shown = page(Parameter([[1.0, -2.0], [0.0, 0.5]], name="<w>"))
    assert shown.rows == [["1", "-2"], ["0", "0.5"]]
    assert [style.partition("rgba")[2] for style in shown.styles] == [
        "(0,104,190,0.30)", "(213,94,0,0.60)", "(0,104,190,0.00)", "(0,104,190,0.15)"
    ]  # fmt: skip
    assert "Parameter <w> 2×2 float32, requires a gradient" in shown.text
    assert "mean -0.125, deviation 1.139, from -2 to 1" in shown.text


def test_a_large_tensor_shows_its_corner():
    shown = page(Tensor(np.arange(2 * 50 * 30.0).reshape(2, 50, 30)))
    assert len(shown.rows) == 9 and shown.rows[8] == ["…"]
    assert shown.rows[1] == [*map(str, range(30, 42)), "…"]


@pytest.mark.parametrize(
    ("data", "rows", "words"),
    [
        (3.0, [["3"]], "Tensor scalar float32"),
        ([1.0, 2.0], [["1", "2"]], "Tensor 2 float32"),
        (np.zeros((0, 3)), [], "no elements"),
        ([np.nan, -np.inf, 1.0], [["nan", "-inf", "1"]], "2 of 3 are not finite"),
        ([0.0, 0.0], [["0", "0"]], "deviation 0"),
    ],
)
def test_odd_tensors_are_shown_too(data, rows, words):
    shown = page(Tensor(data))
    assert shown.rows == rows and words in shown.text


def test_a_tape_shows_what_it_prints():
    x = Parameter(np.ones((2, 3)))  # of float64
    with Tape() as tape:
        loss = ops.mean(x.tanh())
    shown = page(tape)
    assert shown.rows[0] == ["", "operation", "inputs", "output", "bytes saved"]
    assert shown.rows[1:] == [["0", "tanh", "2×3", "2×3", "48"], ["1", "mean", "2×3", "scalar", "0"]]
    assert "48 bytes saved" in shown.text and repr(tape) == "<Tape, recorded operations: 2>"
    tape.backward(loss)
    assert "used up" in page(tape).text and repr(tape) == "<Tape: used up by backward>"


def test_a_model_shows_its_networks(tmp_path):
    model = IJEPA(Config(encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2))
    rows = {row[0]: row[1:] for row in page(model).rows[1:]}
    assert rows["target_encoder"] == ["16", "1", "2", f"{model.encoder_size:,}", "moving average"]
    assert rows["context_encoder"][-2:] == [f"{model.encoder_size:,}", "trained"]
    assert rows["predictor"] == ["96", "4", "6", f"{model.num_parameters() - model.encoder_size:,}", "trained"]
    assert repr(model) == (
        f"IJEPA(encoder 16 wide, 1 block; predictor 96 wide, 4 blocks; {model.num_parameters():,} parameters, cpu)"
    )
    exported.save(tmp_path / "encoder.npz", model, "cifar10", 0)
    alone = load(tmp_path / "encoder.npz")
    assert [row[0] for row in page(alone).rows] == ["", "target_encoder"]
    assert repr(alone) == f"ImageEncoder(encoder 16 wide, 1 block; {model.encoder_size:,} parameters, cpu)"


def test_settings_show_what_differs_from_the_specification():
    config = Config(epochs=3, warmup_epochs=0, target_scale=(0.1, 0.2))
    assert page(config).rows[1:] == [
        ["target_scale", "(0.1, 0.2)", "(0.15, 0.25)"], ["epochs", "3", "100"], ["warmup_epochs", "0.0", "10"]
    ]  # fmt: skip
    assert repr(config) == "Config(target_scale=(0.1, 0.2), epochs=3, warmup_epochs=0.0)"
    assert eval(repr(config)) == config and repr(Config()) == "Config()"


def test_a_prompt_shows_many_values_in_one_line():
    assert repr(Tensor([1.0, 2.0])) == "Tensor([1. 2.], float32)"
    shown = repr(Parameter(np.linspace(0, 1, 192 * 48).reshape(192, 48)))
    assert shown == "Parameter(192×48 of mean 0.5, deviation 0.2887, float64, requires_grad=True)"


def test_named_parameters_are_those_of_the_state():
    model = IJEPA(Config(encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2))
    named = dict(model.named_parameters())
    assert {name.partition(".")[0] for name, p in named.items() if p.requires_grad} == {"context_encoder", "predictor"}
    named["predictor.mask_token"].data[...] = 3  # the parameters themselves
    assert (model.state_dict()["predictor.mask_token"] == 3).all()
