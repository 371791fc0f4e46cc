"""probe.py: what it prints, writes and refuses."""

import json

import numpy as np
import pytest

import probe
import train
from minijepa import IJEPA, Config, evaluation, load, probing
from minijepa.data import load_dataset, normalise
from minijepa.features import extract_features
from minijepa.training import Trainer

NETWORK = dict(
    encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=8, predictor_depth=1,
    predictor_num_heads=2, batch_size=100, epochs=2, warmup_epochs=0, val_size=20,
)  # fmt: skip


@pytest.fixture(autouse=True)
def fewer_pixels(monkeypatch):
    """A probe of 3,072 raw pixels inverts a matrix of that size for each strength; 12 of them tell the tests enough."""

    def narrow(train_x, train_y, test_x, test_y, classes):
        step = 256 if train_x.shape[1] == 3072 else 1
        return probing.linear_probe(train_x[:, ::step], train_y, test_x[:, ::step], test_y, classes)

    monkeypatch.setattr(evaluation, "linear_probe", narrow)


@pytest.fixture
def run(overlapping_cifar_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    settings = [f"--set={key}={value}" for key, value in NETWORK.items()]
    assert train.main(["--device=cpu", f"--data-dir={overlapping_cifar_folder}", f"--run-dir={folder}", *settings]) == 0
    capsys.readouterr()
    return folder


def probe_cli(capsys, *args):
    try:
        status = probe.main([str(a) for a in args])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def test_a_probe_stands_beside_its_baselines(run, overlapping_cifar_folder, capsys):
    status, out, _ = probe_cli(capsys, run, "--device=cpu", f"--data-dir={overlapping_cifar_folder}")
    assert status == 0
    for name in ("I-JEPA features", "random-init encoder", "raw pixels", "linear probe", "kNN (k=20)"):
        assert name in out
    report = json.loads((run / "probe.json").read_text())
    assert (report["split"], report["training_images"], report["test_images"]) == ("test", 400, 40)
    assert report["results"]["raw pixels"]["linear_probe"] > 0.2  # the grey tells the class
    assert all(r["converged"] and r["gradient_norm"] < 1e-5 for r in report["results"].values())
    assert np.sum(report["confusion"]) == 40
    assert np.trace(report["confusion"]) == round(40 * report["results"]["I-JEPA features"]["linear_probe"])
    assert (run / "confusion.png").stat().st_size > 1000


def test_a_validation_probe_uses_the_images_that_were_held_back(run, overlapping_cifar_folder, capsys):
    args = (run, "--device=cpu", f"--data-dir={overlapping_cifar_folder}", "--split=val")
    assert probe_cli(capsys, *args)[0] == 0
    report = json.loads((run / "probe-val-target.json").read_text())
    assert (report["split"], report["training_images"], report["val_images"]) == ("val", 380, 20)
    assert not (run / "probe.json").exists()  # the test set was not touched
    assert probe_cli(capsys, *args, "--encoder=context")[0] == 0
    other = json.loads((run / "probe-val-context.json").read_text())
    assert other["results"]["raw pixels"] == report["results"]["raw pixels"]


def test_a_validation_probe_learns_from_the_images_that_the_run_was_trained_on(overlapping_cifar_folder):
    data, config = load_dataset("cifar10", overlapping_cifar_folder), Config(**NETWORK, max_train_images=300)
    trainer = Trainer(config, data)
    images, labels, val_images, val_labels = evaluation.labelled_images(config, data, "val")
    np.testing.assert_array_equal(images, trainer.images)
    np.testing.assert_array_equal(labels, trainer.monitors.bank_labels)
    np.testing.assert_array_equal(val_images, trainer.monitors.queries)
    np.testing.assert_array_equal(val_labels, trainer.monitors.query_labels)


@pytest.mark.parametrize("encoder", ["target", "context"])
def test_features_are_of_the_encoder_asked_for_and_the_baseline_of_the_one_that_training_began_with(
    run, overlapping_cifar_folder, capsys, monkeypatch, encoder
):
    probed = []

    def record(train_x, train_y, test_x, test_y, classes):
        probed.append((train_x, test_x))
        return probing.linear_probe(train_x[:, :1], train_y, test_x[:, :1], test_y, classes)

    monkeypatch.setattr(evaluation, "linear_probe", record)
    args = (run, "--device=cpu", f"--data-dir={overlapping_cifar_folder}", f"--encoder={encoder}")
    assert probe_cli(capsys, *args)[0] == 0
    data, model = load_dataset("cifar10", overlapping_cifar_folder), load(run)
    for (train_x, test_x), network in zip(probed, (model, IJEPA(model.config, model.config.seed))):
        np.testing.assert_array_equal(train_x, extract_features(network, data.train_images, encoder))
        np.testing.assert_array_equal(test_x, extract_features(network, data.test_images, encoder))


def test_a_checkpoint_file_will_do(run, overlapping_cifar_folder, capsys):
    assert probe_cli(capsys, run / "checkpoint.npz", "--device=cpu", f"--data-dir={overlapping_cifar_folder}")[0] == 0
    assert (run / "probe.json").exists()


def test_features_are_the_mean_over_patches_whatever_the_threads(run):
    model = load(run)
    images = np.random.default_rng(0).integers(0, 256, (37, 3, 32, 32), np.uint8)
    tokens = model.encode(normalise(images, model.mean, model.std)).data
    one, three = (extract_features(model, images, threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one, three)
    np.testing.assert_allclose(one, tokens.mean(axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], "no checkpoint at nowhere"),
        (["{run}", "--data-dir=nowhere"], "nowhere"),
        (["{run}", "--threads=0"], "--threads must be at least 1"),
    ],
)
def test_bad_input_is_one_line_with_status_2(run, overlapping_cifar_folder, capsys, args, words):
    args = [a.format(run=run) for a in args]
    args += [f"--data-dir={overlapping_cifar_folder}"] * (not any("data-dir" in a for a in args))
    status, _, err = probe_cli(capsys, "--device=cpu", *args)
    assert status == 2
    assert words in err and err.startswith("probe.py: ") and err.count("\n") == 1


def test_a_validation_probe_of_a_run_without_held_back_images(overlapping_cifar_folder, tmp_path, capsys):
    settings = ["encoder_embed_dim=16", "encoder_depth=1", "encoder_num_heads=2", "epochs=1", "warmup_epochs=0"]
    args = [f"--data-dir={overlapping_cifar_folder}", f"--run-dir={tmp_path / 'run'}", "--device=cpu"]
    assert train.main(args + [f"--set={s}" for s in settings]) == 0
    status, _, err = probe_cli(
        capsys, tmp_path / "run", f"--data-dir={overlapping_cifar_folder}", "--split=val", "--device=cpu"
    )
    assert status == 2 and "held no images back; train with --set val_size=5000" in err
