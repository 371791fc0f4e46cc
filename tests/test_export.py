"""An encoder alone: exported, loaded, probed, shown pictures, and put into timm's VisionTransformer."""

import json
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, trained
from PIL import Image
from tiny import NETWORK, noise, refusal, rewritten

import probe
from minijepa import Config, export, load
from minijepa.backend.threads import on_threads
from minijepa.data.folder import OwnPictures
from minijepa.errors import CheckpointError, ConfigError, MissingPartError
from minijepa.evaluation import evaluate, gallery
from minijepa.models import IJEPA, Classifier, ImageEncoder
from minijepa.training import checkpoint, exported

SMALL = NETWORK | dict(encoder_depth=2)
README = Path(__file__).parent.parent / "README.md"
CLASSES = tuple("plane car bird cat deer dog frog horse ship truck".split())


def save_run(folder, **settings):
    """The checkpoint of a run of 7 steps; returns the model."""
    model, optimizer = trained(**SMALL | settings)
    folder.mkdir(parents=True)
    checkpoint.save(folder / checkpoint.FILE, model, optimizer, checkpoint.Progress(7), DATA)
    return model


@pytest.fixture
def run(tmp_path):
    save_run(tmp_path / "run")
    return tmp_path / "run"


def with_classifier(run, path, dtype=np.float32):
    """An exported file with a classifier of random weights; returns it."""
    model, draw = load(run), np.random.default_rng(2)
    model.classifier = Classifier(draw.standard_normal((10, 16)), draw.standard_normal(10), CLASSES)
    exported.save(path, model, "cifar10", 7, "by a test", dtype)
    return model.classifier


@pytest.mark.parametrize(("options", "tolerance"), [([], 0), (["--float16"], 2e-2)])
def test_an_exported_encoder_gives_the_features_of_its_run(run, tmp_path, capsys, options, tolerance):
    file = tmp_path / "encoder.npz"
    assert export.main([str(run), str(file), "--note", "a run\nof two lines", *options]) == 0
    assert re.fullmatch(rf"wrote {file}: 8,\d\d\d parameters, 0.\d MB\n", capsys.readouterr().out)
    here, there = load(run), load(file)
    assert type(there) is ImageEncoder and there.classifier is None
    assert (there.config, there.mean, there.std) == (here.config, here.mean, here.std)
    x = here.normalise(noise(3).train_images)
    np.testing.assert_allclose(there.encode(x).data, here.encode(x).data, atol=tolerance)
    with np.load(file, allow_pickle=False) as content:
        about = json.loads(str(content["about"]))
        assert (about["dataset"], about["step"], about["provenance"]) == ("cifar10", 7, "a run of two lines")
        assert content["blocks.1.attn.qkv.weight"].dtype == (np.float16 if options else np.float32)
        assert set(content.files) == {"about", *here.target_encoder.state_dict()}


def test_what_an_exported_encoder_lacks_is_said_when_it_is_asked_for(run, tmp_path):
    exported.save(tmp_path / "encoder.npz", load(run), "cifar10", 7)
    model = load(tmp_path / "encoder.npz")
    for name in ("predictor", "context_encoder", "predictions", "targets", "loss", "gradients"):
        with pytest.raises(MissingPartError, match=f"^no {name}: this is an exported target encoder; the run's"):
            getattr(model, name)
        assert not hasattr(model, name)
    with pytest.raises(ConfigError, match="^no context encoder: this is an exported target encoder"):
        model.encode(model.normalise(noise(1).train_images), "context")
    with pytest.raises(AttributeError, match="ImageEncoder has no attribute 'encoder'"):
        model.encoder  # noqa: B018
    with pytest.raises(CheckpointError, match="encoder.npz is an exported encoder: a run can't go on"):
        checkpoint.restore(tmp_path / "encoder.npz", IJEPA(model.config), None, {})


def test_the_classifier_travels_along_and_through_an_export_of_the_export(run, tmp_path):
    classifier = with_classifier(run, tmp_path / "one.npz")
    assert export.main([str(tmp_path / "one.npz"), str(tmp_path / "two.npz")]) == 0
    found, features = load(tmp_path / "two.npz").classifier, np.random.default_rng(0).standard_normal((5, 16))
    assert found.classes == CLASSES
    p = found.probabilities(features)
    z = np.exp(features @ classifier.weight.T + classifier.bias)
    np.testing.assert_allclose(p, z / z.sum(axis=1, keepdims=True), atol=1e-5)
    assert json.loads(str(np.load(tmp_path / "two.npz")["about"]))["provenance"] == "by a test"


def test_the_fitted_classifier_is_the_probes(overlapping_cifar_folder, run, tmp_path, capsys):
    file, data = tmp_path / "encoder.npz", f"--data-dir={overlapping_cifar_folder}"
    assert export.main([str(run), str(file), "--classifier", "--device=cpu", data]) == 0
    probed, *_ = evaluate.probed_run(run, overlapping_cifar_folder)
    found = load(file).classifier
    assert found.classes == probed.classes
    assert f"{100 * probed.probe.accuracy:.2f}% of 40 test images" in capsys.readouterr().out
    wanted = Classifier(probed.probe.weight, probed.probe.bias, ()).probabilities(probed.test_features)
    np.testing.assert_allclose(found.probabilities(probed.test_features), wanted, rtol=1e-3)
    assert np.mean(wanted.argmax(axis=1) == probed.test_y) == probed.probe.accuracy


def test_a_classifier_is_fitted_by_no_more_threads_than_are_asked_for(run, tmp_path, monkeypatch, capsys):
    def probed_run(*args):
        used = {*on_threads(lambda _: time.sleep(0.02) or threading.get_ident(), range(4), 4)}
        raise ConfigError(f"{len(used)} used")

    monkeypatch.setattr(export, "probed_run", probed_run)
    assert export.main([str(run), str(tmp_path / "encoder.npz"), "--classifier", "--device=cpu", "--threads=1"]) == 2
    assert capsys.readouterr().err == "export: 1 used\n"


def test_an_exported_encoder_is_probed_like_its_run(overlapping_cifar_folder, run, tmp_path, capsys, fewer_pixels):
    with_classifier(run, tmp_path / "small.npz")
    data = f"--data-dir={overlapping_cifar_folder}"
    for subject in (run, tmp_path / "small.npz"):
        assert probe.main([str(subject), "--device=cpu", data]) == 0
    one, two = (json.loads(f.read_text())["results"] for f in (run / "probe.json", tmp_path / "probe-small.json"))
    assert one == two and (tmp_path / "confusion-small.png").exists()
    assert "\nby a test\n" in capsys.readouterr().out
    assert probe.main([str(tmp_path / "small.npz"), "--encoder=context", data]) == 2
    assert capsys.readouterr().err.startswith("probe.py: no context encoder: this is an exported target encoder")
    assert probe.main([str(tmp_path / "small.npz"), "--pictures", data]) == 0
    assert {f.name for f in tmp_path.glob("*-small.png")} == {
        f"{name}-small.png" for name in ("confusion", "neighbours", "pca")
    }


def test_own_pictures_need_neither_data_nor_training(run, own_folder, tmp_path, capsys):
    with_classifier(run, tmp_path / "small.npz")
    args = [str(tmp_path / "small.npz"), f"--images={own_folder}", f"--data-dir={tmp_path / 'nowhere'}"]
    assert probe.main(args) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'own_images-small.png'}\n"
    with Image.open(tmp_path / "own_images-small.png") as picture:
        assert picture.width < 800 and picture.height > 200
    assert probe.main([*args, "--threads=0"]) == 2
    exported.save(tmp_path / "bare.npz", load(run), "cifar10", 7)
    assert probe.main([str(tmp_path / "bare.npz"), *args[1:]]) == 2  # no classifier: it has to be fitted
    assert "nowhere" in capsys.readouterr().err


def test_own_pictures_name_the_classifier_that_chose_the_classes(monkeypatch):
    captions = []
    monkeypatch.setattr(gallery.pictures, "own_images_picture", lambda *args: captions.append(args[-2]))
    images, classifier = noise(3).train_images, Classifier(np.zeros((10, 16)), np.zeros(10), CLASSES)
    model, own = ImageEncoder(Config(**SMALL)), OwnPictures(["one"], images[:1], 0, [])
    labels = np.arange(3)
    probed = evaluate.ProbedEncoder(model, CLASSES, images, labels, images, labels, "test", 7, Path("a.npz"))
    probed.classifier = classifier  # as if it had been fitted
    gallery.draw_own(probed, own)
    model.classifier = classifier
    gallery.draw_own(probed, own)
    assert "the linear probe, which" in captions[0] and "the nearest of 3 training images" in captions[0]
    assert "the linear classifier that came with the encoder, which" in captions[1]


def import_timm():
    """timm and torch; skips the test where they are not installed.

    timm imports torchvision, whose operators are compiled for one build of PyTorch. Beside another one its import stops
    at two operators that nobody here calls; naming them is enough for the rest of it.
    """
    torch = pytest.importorskip("torch")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        from torch import library

        import_timm.named = library.Library("torchvision", "DEF")  # which takes its operators along when it goes
        for name in ("nms", "qnms"):
            import_timm.named.define(f"{name}(Tensor boxes, Tensor scores, float overlap) -> Tensor")
    except ImportError:
        pass
    return pytest.importorskip("timm"), torch


def test_the_readme_exchanges_weights_with_timm(tmp_path, monkeypatch):
    """Its lines run, with an untrained encoder of the preset; the gap of the exact GELU is of the size that it says."""
    timm, torch = import_timm()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "timm" in b)
    monkeypatch.chdir(tmp_path)
    model = save_run(tmp_path / "runs" / "laptop", **Config.preset("laptop").to_dict())
    names = {"images": noise(8).train_images}
    exec(block, names)
    ours = model.encode(model.normalise(names["images"])).data.mean(axis=1)
    np.testing.assert_allclose(names["features"].detach().numpy(), ours, atol=2e-5)

    exact = timm.models.VisionTransformer(**names["settings"] | {"act_layer": "gelu"})
    exact.load_state_dict(names["vit"].state_dict())
    gap = np.abs(exact.eval()(torch.tensor(model.normalise(names["images"]))).detach().numpy() - ours).max()
    assert 2e-5 < gap < 1e-3

    for parameter in names["vit"].parameters():
        parameter.data += 1
    exec(block[block.index("model.target_encoder.load_state_dict") :], names)
    for name, parameter in names["vit"].named_parameters():
        np.testing.assert_array_equal(names["model"].target_encoder.state_dict()[name], parameter.detach().numpy())


def test_safetensors_hold_the_same(run, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    file = tmp_path / "encoder.safetensors"
    assert export.main([str(run), str(file)]) == 0
    with safetensors.safe_open(file, "numpy") as content:
        for name, values in load(run).target_encoder.state_dict().items():
            np.testing.assert_array_equal(content.get_tensor(name), values)
        assert json.loads(content.metadata()["about"])["step"] == 7


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("encoder.pt", "encoder.pt must end in .npz or .safetensors"),
        ("run/checkpoint.npz", "checkpoint.npz exists: choose another name, or remove it"),
        ("nowhere/encoder.npz", "nowhere is not a folder: make it first"),
    ],
)
def test_a_bad_name_is_one_line_and_nothing_is_written(run, tmp_path, capsys, file, words):
    before = (run / "checkpoint.npz").read_bytes()
    told = refusal(capsys, export.main, run, tmp_path / file)
    assert told.startswith("export: ") and words in told
    assert (run / "checkpoint.npz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_weights_that_float16_cannot_hold_are_refused(run, tmp_path):
    model = load(run)
    model.target_encoder.norm.weight.data[3] = 1e5
    with pytest.raises(CheckpointError, match="norm.weight holds numbers too large for float16: export float32"):
        exported.save(tmp_path / "encoder.npz", model, "cifar10", 7, dtype=np.float16)
    assert [f.name for f in tmp_path.iterdir()] == ["run"]


BROKEN = {
    "another format": (dict(format=2), {}, "format 2, this version reads 1"),
    "a step in words": (dict(step="7"), {}, "its field step is '7'"),
    "a class without a name": (dict(classes=[1, 2]), {}, r"its field classes is \[1, 2\]"),
    "another number of classes": (dict(classes=["a", "b"]), {}, "must fit 2 classes and 16 features"),
    "a head without classes": (dict(classes=[]), {}, "must fit 0 classes"),
    "a matrix of doubles": ({}, {"norm.weight": np.ones(16)}, "finite numbers of float32 or float16"),
    "a short vector": ({}, {"norm.weight": np.ones(8, np.float32)}, "require 8,400 parameters, but it holds 8,392"),
    "an unknown matrix": ({}, {"extra": np.ones(8, np.float32)}, "it holds 8,408"),
    "settings that are none": (dict(config={"encoder_embed_dim": 16, "speed": 3}), {}, "unknown setting 'speed'"),
}


@pytest.mark.parametrize("change", BROKEN)
def test_a_file_that_export_would_not_have_written_is_refused_by_name(run, tmp_path, change):
    with_classifier(run, tmp_path / "file.npz")
    about, arrays, words = BROKEN[change]
    rewritten(tmp_path / "file.npz", about, **arrays)
    with pytest.raises(CheckpointError, match=f"file.npz.*{words}"):
        load(tmp_path / "file.npz")
