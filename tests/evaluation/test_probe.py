"""probe.py: what it prints, writes and refuses."""

import json
import shutil
import threading
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import write_cifar
from PIL import Image
from tiny import DEEPER, NETWORK, command, contents, flags, raising

import probe
import train
from minijepa import IJEPA, Config, load
from minijepa.data import load_dataset
from minijepa.errors import ConfigError
from minijepa.evaluation import evaluate, kept, probing
from minijepa.evaluation.verdict import verdict
from minijepa.training.report import write_report
from minijepa.training.trainer import Trainer

SETTINGS = DEEPER | dict(batch_size=100, epochs=2, warmup_epochs=0, val_size=20)


pytestmark = pytest.mark.usefixtures("fewer_pixels")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the images of ``overlapping_cifar_folder``."""
    place = tmp_path_factory.mktemp("trained")
    data = write_cifar(place, 80, 40, spread=60)
    assert train.main(["--device=cpu", f"--data-dir={data}", f"--run-dir={place / 'run'}", *flags(SETTINGS)]) == 0
    return place / "run"


@pytest.fixture
def run(trained, tmp_path, capsys):
    capsys.readouterr()
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def probe_cli(overlapping_cifar_folder, capsys):
    """Run probe.py on the data of ``trained``: (exit status, stdout, stderr)."""
    data = f"--data-dir={overlapping_cifar_folder}"
    return lambda subject, *args: command(capsys, probe.main, subject, "--device=cpu", data, *args)


def test_a_probe_is_reported_with_its_baselines(run, probe_cli):
    status, out, _ = probe_cli(run)
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


def test_a_validation_probe_uses_the_images_that_were_held_back(run, probe_cli):
    assert probe_cli(run, "--split=val")[0] == 0
    report = json.loads((run / "probe-val-target.json").read_text())
    assert (report["split"], report["training_images"], report["val_images"]) == ("val", 380, 20)
    assert not (run / "probe.json").exists()  # the test set was not touched
    assert probe_cli(run, "--split=val", "--encoder=context")[0] == 0
    other = json.loads((run / "probe-val-context.json").read_text())
    assert other["results"]["raw pixels"] == report["results"]["raw pixels"]


def test_a_validation_probe_learns_from_the_images_that_the_run_was_trained_on(overlapping_cifar_folder):
    data, config = load_dataset("cifar10", overlapping_cifar_folder), Config(**SETTINGS, max_train_images=300)
    trainer = Trainer(config, data)
    watch = trainer.monitors
    used = trainer.images, watch.bank_labels, watch.queries, watch.query_labels
    np.testing.assert_equal(evaluate.labelled_images(config, data, "val"), used)


def one_feature(train_x, train_y, test_x, *rest, **options):
    """A linear probe of the first feature alone, which is quick."""
    return probing.linear_probe(train_x[:, :1], train_y, test_x[:, :1], *rest, **options)


@pytest.mark.parametrize("encoder", ["target", "context"])
def test_features_are_of_the_encoder_asked_for_and_the_baseline_of_the_one_that_training_began_with(
    run, overlapping_cifar_folder, monkeypatch, encoder, probe_cli
):
    monkeypatch.setattr(evaluate, "linear_probe", fit := Mock(side_effect=one_feature))
    assert probe_cli(run, f"--encoder={encoder}")[0] == 0
    data, model = load_dataset("cifar10", overlapping_cifar_folder), load(run)
    for call, network in zip(fit.call_args_list, (model, IJEPA(model.config, model.config.seed))):
        train_x, _, test_x, *_ = call.args
        np.testing.assert_array_equal(train_x, network.features(data.train_images, encoder))
        np.testing.assert_array_equal(test_x, network.features(data.test_images, encoder))


def counted_fits(monkeypatch):
    """A list that gets the shape of the features of each linear probe."""
    fits, probe_of = [], evaluate.linear_probe

    def count(x, *args, **options):
        fits.append(x.shape)
        return probe_of(x, *args, **options)

    monkeypatch.setattr(evaluate, "linear_probe", count)
    return fits


def test_the_last_blocks_are_probed_together_beside_the_results_of_the_last_one(run, probe_cli, monkeypatch):
    monkeypatch.setattr(evaluate, "linear_probe", one_feature)
    fits = counted_fits(monkeypatch)
    depth = load(run).config.encoder_depth
    status, out, _ = probe_cli(run, f"--blocks={depth}")
    assert status == 0 and [width for _, width in fits] == [16 * depth, 16 * depth, 3072]
    assert f"features after each of the last {depth} blocks, side by side: {16 * depth} of them" in out
    assert json.loads((run / f"probe-{depth}-blocks.json").read_text())["blocks"] == depth
    assert not (run / "probe.json").exists()
    assert probe_cli(run)[0] == 0  # another untrained row, the same one of raw pixels
    assert [width for _, width in fits[3:]] == [16, 16]
    pictures = "--pictures", "leave out --pictures"
    for wrong, *more, text in (("9", "the encoder has"), ("0", "the encoder has"), ("2", *pictures), ("0", *pictures)):
        status, _, err = probe_cli(run, f"--blocks={wrong}", *more)
        assert status == 2 and text in err and err.count("\n") == 1


def test_what_training_does_not_change_is_computed_once(run, probe_cli, monkeypatch):
    fits = counted_fits(monkeypatch)
    _, out, _ = probe_cli(run)
    first = json.loads((run / "probe.json").read_text())
    assert [width for _, width in fits] == [16, 16, 3072] and "computed before" not in out
    _, out, _ = probe_cli(run)
    again = json.loads((run / "probe.json").read_text())
    assert len(fits) == 4 and out.count("(computed before: baselines.json)") == 2
    assert again["results"] == first["results"]
    probe_cli(run, "--encoder=context")
    assert len(fits) == 5  # both encoders begin with the same weights
    probe_cli(run, "--split=val")
    assert len(fits) == 8  # other images: everything anew
    (run.parent / "baselines.json").write_text("[1, {")
    probe_cli(run)
    assert len(fits) == 11
    monkeypatch.setattr(kept, "sources", lambda: "another program")
    probe_cli(run)
    assert len(fits) == 14
    rows = json.loads((run.parent / "baselines.json").read_text())
    assert {row["sources"] for row in rows.values()} == {"another program"}  # the others are of no use any more


@pytest.mark.parametrize("change", ["image", "label", "weight", "mean", "numpy", "device", "split"])
def test_a_key_depends_on_all_that_a_figure_depends_on(run, overlapping_cifar_folder, monkeypatch, change):
    probed, *_ = evaluate.probed_run(run, overlapping_cifar_folder)
    name, model, before = "row", probed.model, kept.key_of(probed, "row", probed.model)
    assert kept.key_of(probed, name, model) == before != kept.key_of(probed, name)
    if change == "image":
        probed.test = probed.test.copy()
        probed.test[-1, -1, -1, -1] ^= 1
    elif change == "label":
        probed.train_y = probed.train_y[::-1].copy()
    elif change == "split":  # the same rows, cut elsewhere
        rows = np.concatenate([probed.train, probed.test])
        probed.train, probed.test = rows[:-1], rows[-1:]
    elif change == "weight":
        model.target_encoder.norm.bias.data[0] += 1e-6
    elif change == "mean":
        model.mean = (0.5, *model.mean[1:])
    elif change == "numpy":
        monkeypatch.setattr(np, "__version__", "9.9")
    else:
        model.device = "cuda"
    assert kept.key_of(probed, name, model) != before


def test_a_quick_probe_takes_a_tenth_of_the_images_and_leaves_the_full_results(run, probe_cli):
    assert probe_cli(run)[0] == 0
    write_report(run)
    before = contents(run)
    assert probe_cli(run, "--quick")[0] == 0
    report = json.loads((run / "probe-quick.json").read_text())
    assert (report["training_images"], report["test_images"]) == (40, 4)
    after = contents(run)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"probe-quick.json", "confusion-quick.png", "classifier-quick.npz"}


@pytest.mark.parametrize(
    ("ours", "untrained", "pixels", "count", "words"),
    [
        (0.55, 0.424, 0.41, 10000, "12.6 points above the untrained encoder and 14.0 above raw pixels: it has learnt"),
        (0.38, 0.31, 0.41, 10000, "7.0 points above the untrained encoder, so it has learnt; but raw pixels are 3.0"),
        (0.41, 0.31, 0.41, 10000, "so it has learnt; but no better than raw pixels (+0.0 points): train longer"),
        (0.426, 0.424, 0.2, 10000, "no better than the untrained encoder (+0.2 points, where up to 1.4 is chance on"),
        (0.55, 0.424, 0.41, 40, "no better than the untrained encoder (+12.6 points, where up to 22.2 is chance on 40"),
        (0.1, 0.424, 0.41, 10000, "32.4 points below the untrained encoder: training made the features worse"),
        (1.0, 0.0, 0.0, 1, "100.0 points above the untrained encoder"),
    ],
)
def test_a_verdict_in_words(ours, untrained, pixels, count, words):
    text = verdict({"I-JEPA features": ours, "random-init encoder": untrained, "raw pixels": pixels}, count)
    assert words in text and "\n" not in text


def test_a_probe_ends_with_its_verdict_and_takes_a_checkpoint_file(run, probe_cli):
    _, out, _ = probe_cli(run / "checkpoint.npz")
    report = json.loads((run / "probe.json").read_text())
    assert out.splitlines()[-2] == f"verdict: {report['verdict']}"
    rates = {name: row["linear_probe"] for name, row in report["results"].items()}
    assert report["verdict"] == verdict(rates, 40)


@pytest.mark.parametrize(("name", "end"), [("checkpoint-0002.npz", "-0002"), ("ten.npz", "-ten")])
def test_a_kept_checkpoint_leaves_the_results_of_the_last_one_alone(run, probe_cli, name, end):
    (run / name).write_bytes((run / "checkpoint.npz").read_bytes())
    write_report(run)
    before = contents(run)
    for split in ("test", "val"):
        assert probe_cli(run / name, f"--split={split}")[0] == 0
    after = contents(run)
    assert {file: after[file] for file in before} == before
    endings = (end, f"{end}-val-target")
    kinds = ("probe{}.json", "confusion{}.png", "classifier{}.npz")
    written = {kind.format(ending) for ending in endings for kind in kinds}
    assert after.keys() - before.keys() == written


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], "no checkpoint at nowhere"),
        (["{run}", "--data-dir=nowhere"], "nowhere"),
        (["{run}", "--threads=0"], "--threads must be at least 1"),
    ],
)
def test_bad_input_is_one_line_with_status_2(run, probe_cli, args, words):
    status, _, err = probe_cli(*(a.format(run=run) for a in args))
    assert status == 2 and words in err and err.startswith("probe.py: ") and err.count("\n") == 1


def test_a_validation_probe_of_a_run_without_held_back_images_is_refused(overlapping_cifar_folder):
    data = load_dataset("cifar10", overlapping_cifar_folder)
    with pytest.raises(ConfigError, match="held no images back; train with --set val_size=5000"):
        evaluate.labelled_images(Config(**SETTINGS | {"val_size": 0}), data, "val")


# ------------------------------------------------------------------------------------------------------------- pictures


def test_pictures_need_no_second_fit_of_the_probe(run, probe_cli, own_folder, monkeypatch):
    at_the_end = contents(run, "*.png")
    assert set(at_the_end) == {"masks.png", "curves.png", "neighbours.png", "pca.png", "predictions.png"}
    fits = counted_fits(monkeypatch)
    status, out, _ = probe_cli(run, "--pictures", f"--images={own_folder}")
    assert status == 0 and len(fits) == 3  # the features, and two baselines
    drawn = contents(run, "*.png")
    assert set(drawn) == {*at_the_end, "confusion.png", "own_images.png"}
    assert all(str(run / name) in out for name in drawn)
    for name in ("masks.png", "curves.png"):
        assert drawn[name] == at_the_end[name]
    for name in ("neighbours.png", "pca.png", "predictions.png"):
        assert drawn[name] != at_the_end[name]  # of test images now
    assert probe_cli(run, "--pictures", "--threads=1", f"--images={own_folder}")[0] == 0
    assert contents(run, "*.png") == drawn


def test_pictures_of_a_checkpoint_file_are_written_next_to_it(run, probe_cli, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "best.npz"
    file.write_bytes((run / "checkpoint.npz").read_bytes())
    assert probe_cli(file, "--pictures", "--split=val", "--encoder=context")[0] == 0
    suffixed = {f"{name}-val-context.png" for name in ("confusion", "neighbours", "pca", "predictions")}
    assert set(contents(file.parent, "*.png")) == {"masks.png", *suffixed}  # without metrics there are no curves
    assert contents(file.parent, "*.png")["masks.png"] == contents(run, "*.png")["masks.png"]


def test_own_pictures_alone_need_no_baselines(run, probe_cli, own_folder, monkeypatch):
    monkeypatch.setattr(evaluate, "IJEPA", None)  # no untrained encoder is made
    status, out, _ = probe_cli(run, f"--images={own_folder}")
    assert status == 0
    assert out == f"wrote {run / 'own_images.png'}\nwrote {run / 'report.html'}: open it in a browser\n"
    assert not (run / "probe.json").exists()
    with Image.open(run / "own_images.png") as picture:
        assert picture.width > 900 and picture.height > 8 * 140


def test_own_pictures_use_the_classifier_of_an_earlier_probe_if_it_is_of_this_encoder(
    run, overlapping_cifar_folder, own_folder, monkeypatch, probe_cli
):
    fits = counted_fits(monkeypatch)
    assert probe_cli(run)[0] == 0 and len(fits) == 3
    for _ in range(2):
        assert probe_cli(run, f"--images={own_folder}")[0] == 0 and len(fits) == 3
    drawn = (run / "own_images.png").read_bytes()
    (run / "classifier.npz").write_bytes(b"PK damaged")
    assert probe_cli(run, f"--images={own_folder}")[0] == 0 and len(fits) == 4
    assert (run / "own_images.png").read_bytes() == drawn
    assert train.main([f"--data-dir={overlapping_cifar_folder}", f"--run-dir={run}2", "--device=cpu", "--seed=1",
                       *flags(NETWORK)]) == 0  # fmt: skip
    (run / "checkpoint.npz").write_bytes((run.with_name("run2") / "checkpoint.npz").read_bytes())
    assert probe_cli(run, f"--images={own_folder}")[0] == 0 and len(fits) == 5


def test_a_bad_folder_is_one_line_before_any_work(run, tmp_path, monkeypatch, probe_cli):
    monkeypatch.setattr(evaluate.ProbedEncoder, "features_of", None)
    own = tmp_path / "own"

    def refusal(*args):
        status, out, err = probe_cli(run, f"--images={own}", *args)
        assert status == 2 and out == "" and err.startswith("probe.py: ") and err.count("\n") == 1
        return err

    assert "own is missing: give a folder with pictures" in refusal()
    own.write_text("x")
    assert "own is not a folder" in refusal("--pictures")
    own.unlink()
    own.mkdir()
    assert "own holds no pictures: give a folder with files such as" in refusal()
    (own / "notes.txt").write_text("x")
    assert "own holds no pictures" in refusal("--pictures")
    for content in (b"", b"not a picture"):
        (own / "b.png").write_bytes(content)
        assert "no readable pictures (1 tried; b.png: not a picture that Pillow can read)" in refusal("--pictures")


def test_damaged_metrics_are_found_before_the_evaluation(run, probe_cli, monkeypatch):
    monkeypatch.setattr(evaluate.ProbedEncoder, "features_of", None)
    (run / "metrics.csv").write_text("a,b\n")
    status, _, err = probe_cli(run, "--pictures")
    assert status == 2 and "metrics.csv does not have the columns" in err


def test_a_probe_uses_no_more_threads_than_it_is_told(run, probe_cli, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", raising(AssertionError("a second thread")))
    assert probe_cli(run, "--threads=1")[0] == 0
    with pytest.raises(AssertionError, match="a second thread"):
        probe_cli(run, "--threads=2")
