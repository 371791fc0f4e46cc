"""The examples do what they say, and the one-file I-JEPA is the package's, number by number."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import notebooks
import numpy as np
import pytest
from PIL import Image
from tiny import differentiate

from examples import ijepa_in_one_file as one
from minijepa import IJEPA, Config, MultiBlockMasker, Tape, load_cifar10
from minijepa.training.ema import update_ema
from minijepa.training.optim import AdamW

EXAMPLES = Path(__file__).parents[1] / "examples"


# ------------------------------------------------------------------------------------------------------- the one file


@pytest.fixture
def both(rng):
    """The package's model far from its start, the one file's parameters with the same values, images, masks."""
    config = Config(
        encoder_embed_dim=one.ENCODER["width"], encoder_depth=one.ENCODER["depth"],
        encoder_num_heads=one.ENCODER["heads"], predictor_embed_dim=one.PREDICTOR["width"],
        predictor_depth=one.PREDICTOR["depth"], predictor_num_heads=one.PREDICTOR["heads"],
        weight_decay=one.WEIGHT_DECAY,
    )  # fmt: skip
    model = IJEPA(config, dtype=np.float64)
    model.load_state_dict({k: v + 0.1 * rng.standard_normal(v.shape) for k, v in model.state_dict().items()})
    params = one.new_parameters(rng)
    assert set(params) == set(model.state_dict())
    for name, values in model.state_dict().items():
        assert params[name].data.size == values.size
        params[name] = one.Value(values.reshape(params[name].data.shape).copy())
    images = rng.standard_normal((3, 3, 32, 32))
    masks = MultiBlockMasker.of(config).sample(3, rng)
    return model, params, images, masks


def patches_of(images, size=4):
    """(B, 3, 32, 32) -> (B, 64, 48), with loops."""
    cut = [images[:, :, i : i + size, j : j + size] for i in range(0, 32, size) for j in range(0, 32, size)]
    return np.stack([patch.reshape(len(images), -1) for patch in cut], axis=1)


def lists(masks):
    return list(zip(masks.context, masks.targets))


def test_the_loss_and_every_gradient_are_the_package_s(both):
    model, params, images, masks = both
    expected = differentiate(lambda: model.loss(images, masks))
    count, loss = len(masks.target_index), 0
    for patches, (context, targets) in zip(patches_of(images), lists(masks)):
        part = one.image_loss(params, patches, context, targets, count)
        loss += part.data
        one.walk_back(part)

    assert loss == pytest.approx(expected.item(), rel=1e-12)
    gradients = model.gradients()
    for name, value in params.items():
        if name.startswith("target_encoder"):
            assert not value.grad.any()
        else:
            wanted = gradients.pop(name).reshape(value.data.shape)
            assert np.abs(wanted).max() > 0
            assert np.abs(value.grad - wanted).max() <= 1e-12 * np.abs(wanted).max(), name
    assert not gradients and not one.tape


def test_a_whole_training_step_is_the_package_s(both):
    model, params, images, masks = both
    moments = {name: np.zeros((2, *p.data.shape)) for name, p in params.items() if not name.startswith("target")}
    optimizer = AdamW(model.flat.data, model.flat.grad, model.decayed, model.config.weight_decay)
    for step, (lr, momentum) in enumerate([(1e-3, 0.99), (2e-3, 0.995), (1e-3, 0.999)], start=1):
        model.zero_grad()
        expected = differentiate(lambda: model.loss(images, masks))
        optimizer.step(lr)
        update_ema(model.target_flat.data, model.flat.data[: model.encoder_size], momentum)
        loss = one.train_step(params, moments, patches_of(images), lists(masks), step, lr, momentum)
        assert loss == pytest.approx(expected.item(), rel=1e-9)
    for name, values in model.state_dict().items():
        # a key's bias has no gradient but rounding errors, which AdamW makes as large as any other
        mine = params[name].data.reshape(values.shape)
        if name.endswith("qkv.bias"):
            width = len(values) // 3
            mine, values = np.delete(mine, np.s_[width : 2 * width]), np.delete(values, np.s_[width : 2 * width])
        np.testing.assert_allclose(mine, values, rtol=0, atol=1e-9, err_msg=name)


def test_its_masks_are_those_of_the_specification():
    """Sizes, places and what is taken away; the distribution is that of the package's masker to three deviations."""
    rng, masker = np.random.default_rng(0), MultiBlockMasker()
    ours, theirs = [one.sample_masks(rng) for _ in range(2000)], masker.sample(2000, rng)
    for context, targets in ours:
        assert len(targets) == 4 and len(context) >= 4
        assert (np.diff(context) > 0).all() and not set(context) & set(np.concatenate(targets))
        for target in targets:
            i, j = np.divmod(target, one.GRID)
            assert len(target) == (np.ptp(i) + 1) * (np.ptp(j) + 1) and (np.diff(target) > 0).all()
    for mine, package in (
        ([len(context) for context, _ in ours], theirs.context_lengths),
        ([len(target) for _, targets in ours for target in targets], theirs.target_lengths.ravel()),
    ):
        deviation = np.sqrt(2 * np.var(package) / len(package))
        assert abs(np.mean(mine) - np.mean(package)) < 3 * deviation
        assert np.std(mine) == pytest.approx(np.std(package), rel=0.05)
    seen = np.bincount(np.concatenate([context for context, _ in ours]), minlength=one.N) / len(ours)
    wanted = np.bincount(theirs.context_index, minlength=one.N) / len(theirs)
    assert np.abs(seen - wanted).max() < 4 * np.sqrt(0.5 / len(ours))


def test_it_reads_cifar10_where_that_is(cifar_folder, monkeypatch):
    monkeypatch.chdir(cifar_folder.parent)
    what, patches = one.load_images(np.random.default_rng(0))
    assert what == "CIFAR-10" and patches.dtype == np.float32
    images = load_cifar10("data", "train")[0][: len(patches)].astype(np.float64)
    np.testing.assert_allclose(patches, patches_of((images - images.mean()) / images.std()), atol=1e-4)


def test_it_trains_and_prints_a_falling_loss(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # without CIFAR-10
    monkeypatch.setattr(sys, "argv", ["ijepa_in_one_file.py", "40"])
    monkeypatch.setattr(one, "BATCH", 2)
    one.main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert "drawn shapes" in head and len(lines) == 2
    first, last = (float(line.split()[3]) for line in lines)
    assert last < 0.9 * first


def test_examples_stay_short_and_the_one_file_needs_numpy_alone():
    lengths = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert lengths["ijepa_in_one_file"] <= 260 and max(lengths["first_network"], lengths["train"]) <= 30
    text = (EXAMPLES / "ijepa_in_one_file.py").read_text()
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) <= {*sys.stdlib_module_names, "numpy"}


# ------------------------------------------------------------------------------------------------ on the package's API


def losses_of(printed):
    return [float(re.search(r"loss +([\d.]+)", line)[1]) for line in printed.splitlines()]


def test_the_first_network_learns_its_spirals(capsys):
    source = (EXAMPLES / "first_network.py").read_text()
    assert source.count("range(2001)") == 1
    exec(compile(source.replace("range(2001)", "range(1001)"), "first_network.py", "exec"), {})
    out = capsys.readouterr().out
    assert losses_of(out)[-1] < 0.1
    assert float(re.findall(r"([\d.]+)% right", out)[-1]) > 95


def test_the_shortest_training_loop_learns(capsys):
    source = (EXAMPLES / "train.py").read_text()
    for long, short in (("range(201)", "range(21)"), ("size=64", "size=8"), ("make_shapes(4000)", "make_shapes(250)"),
                        ("step % 20", "step % 10")):  # fmt: skip
        assert source.count(long) == 1
        source = source.replace(long, short)
    exec(compile(source, "train.py", "exec"), {})
    first, *_, last = losses_of(capsys.readouterr().out)
    assert last < 0.8 * first


def test_the_readme_names_the_operations_of_a_training_step():
    """What a training step records, and nothing else: the words of the README are held to a tape."""
    text = (EXAMPLES.parent / "README.md").read_text()
    (sentence,) = re.findall(r"training\s+step\s+uses\s+nine\s+operations[^.]*\.", text)
    model = IJEPA(Config.preset("smoke"))
    images, masks = np.zeros((2, 3, 32, 32), np.float32), MultiBlockMasker().sample(2, np.random.default_rng(0))
    with Tape() as tape:
        model.loss(images, masks)
    used = {entry.op.op_name for entry in tape.entries}
    assert set(re.findall(r"`(\w+)`", sentence)) == used and len(used) == 9


# ------------------------------------------------------------------------------------------------------- the notebook

NOTEBOOK = EXAMPLES / "first_steps.ipynb"
NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[+-]\d+)?")


def assert_alike(stored, new):
    """The same words, and numbers to a twentieth: after a thousand steps, another BLAS gives other last digits."""
    stored, new = "".join(stored), "".join(new)
    assert NUMBER.sub("#", stored).split() == NUMBER.sub("#", new).split()
    for a, b in zip(*([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (stored, new))):
        assert a == pytest.approx(b, rel=0.05, abs=0.021), new


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), np.float64)


def test_the_notebook_shows_what_its_cells_give(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    notebook = notebooks.read(NOTEBOOK)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    shown = set()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        given = notebooks.run(notebook)
    for cell, outputs in zip(cells, given):
        assert [output["output_type"] for output in cell["outputs"]] == [output["output_type"] for output in outputs]
        for stored, new in zip(cell["outputs"], outputs):
            shown |= {stored["output_type"], *stored.get("data", ())}
            assert_alike(stored.get("text", ""), new.get("text", ""))
            assert stored.get("data", {}).keys() == new.get("data", {}).keys()
            assert_alike(stored.get("data", {}).get("text/plain", ""), new.get("data", {}).get("text/plain", ""))
            if "image/png" in new.get("data", {}):
                difference = pixels(stored["data"]["image/png"]) - pixels(new["data"]["image/png"])
                assert np.abs(difference).mean() < 8
    assert shown >= {"stream", "execute_result", "image/png"}
    text = "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"])
    assert "bytes saved" in text and "100% right" in text  # the drawn tape, the trained network
    assert "the gradient of input 0 is wrong" in text and "right: the largest" in text  # the exercise, before and after


def test_the_notebook_is_stored_as_its_script_stores_it():
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 4)
    assert {key for cell in notebook["cells"] for key in cell["metadata"]} == set()
    for cell in notebook["cells"]:
        for link in re.findall(r"\]\((?!http)([^)]+)\)", "".join(cell["source"])):
            assert (EXAMPLES / link).exists(), link
