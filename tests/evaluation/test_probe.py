"""probe.py: what it prints, writes and refuses."""

import json
import shutil
import struct
import threading

import numpy as np
import pytest
from PIL import Image
from tiny import DEEPER, NETWORK, command, flags

import probe
import train
from minijepa import IJEPA, Config, load
from minijepa.data import folder, load_dataset, normalise, read_folder
from minijepa.errors import ConfigError, DataError
from minijepa.evaluation import evaluate, kept, probing
from minijepa.evaluation.features import extract_features
from minijepa.evaluation.verdict import verdict
from minijepa.training.report import write_report
from minijepa.training.trainer import Trainer

from conftest import write_cifar  # isort: skip

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
    images, labels, val_images, val_labels = evaluate.labelled_images(config, data, "val")
    np.testing.assert_array_equal(images, trainer.images)
    np.testing.assert_array_equal(labels, trainer.monitors.bank_labels)
    np.testing.assert_array_equal(val_images, trainer.monitors.queries)
    np.testing.assert_array_equal(val_labels, trainer.monitors.query_labels)


def one_feature(train_x, train_y, test_x, *rest, **options):
    """A linear probe of the first feature alone, which is quick."""
    return probing.linear_probe(train_x[:, :1], train_y, test_x[:, :1], *rest, **options)


@pytest.mark.parametrize("encoder", ["target", "context"])
def test_features_are_of_the_encoder_asked_for_and_the_baseline_of_the_one_that_training_began_with(
    run, overlapping_cifar_folder, monkeypatch, encoder, probe_cli
):
    probed = []

    def record(train_x, train_y, test_x, test_y, classes, **options):
        probed.append((train_x, test_x))
        return one_feature(train_x, train_y, test_x, test_y, classes, **options)

    monkeypatch.setattr(evaluate, "linear_probe", record)
    assert probe_cli(run, f"--encoder={encoder}")[0] == 0
    data, model = load_dataset("cifar10", overlapping_cifar_folder), load(run)
    for (train_x, test_x), network in zip(probed, (model, IJEPA(model.config, model.config.seed))):
        np.testing.assert_array_equal(train_x, extract_features(network, data.train_images, encoder))
        np.testing.assert_array_equal(test_x, extract_features(network, data.test_images, encoder))


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
    for wrong, text in (("9", "the encoder has"), ("0", "the encoder has"), ("2", "leave out --pictures")):
        status, _, err = probe_cli(run, f"--blocks={wrong}", *["--pictures"] * (wrong == "2"))
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
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert probe_cli(run, "--quick")[0] == 0
    report = json.loads((run / "probe-quick.json").read_text())
    assert (report["training_images"], report["test_images"]) == (40, 4)
    after = {file.name: file.read_bytes() for file in run.iterdir()}
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


def test_a_kept_checkpoint_leaves_the_results_of_the_last_one_alone(run, probe_cli):
    (run / "checkpoint-0002.npz").write_bytes((run / "checkpoint.npz").read_bytes())
    write_report(run)
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    for split in ("test", "val"):
        assert probe_cli(run / "checkpoint-0002.npz", f"--split={split}")[0] == 0
    after = {file.name: file.read_bytes() for file in run.iterdir()}
    assert {name: after[name] for name in before} == before
    endings = ("-0002", "-0002-val-target")
    kinds = ("probe{}.json", "confusion{}.png", "classifier{}.npz")
    written = {name.format(end) for end in endings for name in kinds}
    assert after.keys() - before.keys() == written


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
def test_bad_input_is_one_line_with_status_2(run, probe_cli, args, words):
    status, _, err = probe_cli(*(a.format(run=run) for a in args))
    assert status == 2 and words in err and err.startswith("probe.py: ") and err.count("\n") == 1


def test_a_validation_probe_of_a_run_without_held_back_images_is_refused(overlapping_cifar_folder):
    data = load_dataset("cifar10", overlapping_cifar_folder)
    with pytest.raises(ConfigError, match="held no images back; train with --set val_size=5000"):
        evaluate.labelled_images(Config(**SETTINGS | {"val_size": 0}), data, "val")


# ------------------------------------------------------------------------------------------------------------- pictures


def contents(run):
    return {path.name: path.read_bytes() for path in run.glob("*.png")}


def test_pictures_need_no_second_fit_of_the_probe(run, probe_cli, own_folder, monkeypatch):
    at_the_end = contents(run)
    assert set(at_the_end) == {"masks.png", "curves.png", "neighbours.png", "pca.png", "predictions.png"}
    fits = counted_fits(monkeypatch)
    status, out, _ = probe_cli(run, "--pictures", f"--images={own_folder}")
    assert status == 0 and len(fits) == 3  # the features, and two baselines
    drawn = contents(run)
    assert set(drawn) == {*at_the_end, "confusion.png", "own_images.png"}
    assert all(str(run / name) in out for name in drawn)
    for name in ("masks.png", "curves.png"):
        assert drawn[name] == at_the_end[name]
    for name in ("neighbours.png", "pca.png", "predictions.png"):
        assert drawn[name] != at_the_end[name]  # of test images now
    assert probe_cli(run, "--pictures", "--threads=1", f"--images={own_folder}")[0] == 0
    assert contents(run) == drawn


def test_pictures_of_a_checkpoint_file_are_written_next_to_it(run, probe_cli, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "best.npz"
    file.write_bytes((run / "checkpoint.npz").read_bytes())
    assert probe_cli(file, "--pictures", "--split=val", "--encoder=context")[0] == 0
    suffixed = {f"{name}-val-context.png" for name in ("confusion", "neighbours", "pca", "predictions")}
    assert set(contents(file.parent)) == {"masks.png", *suffixed}  # without metrics there are no curves
    assert contents(file.parent)["masks.png"] == contents(run)["masks.png"]


@pytest.fixture
def own_folder(tmp_path):
    """Pictures of several sizes, modes and formats, and files that are not pictures."""
    own, draw = tmp_path / "own", np.random.default_rng(0)
    own.mkdir()
    picture = Image.fromarray(draw.integers(0, 256, (70, 50, 3), np.uint8))
    for name in ("a.jpg", "b.PNG", "c.webp", "d.bmp", "e.gif", "f.tif"):
        picture.save(own / name)
    picture.convert("L").save(own / "g.png")
    Image.new("1", (3, 200), 1).save(own / "h.png")
    (own / "notes.txt").write_text("no picture")
    (own / ".hidden.png").write_text("no picture")
    (own / "folder.png").mkdir()
    return own


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
                       *(f"--set={key}={value}" for key, value in NETWORK.items())]) == 0  # fmt: skip
    (run / "checkpoint.npz").write_bytes((run.with_name("run2") / "checkpoint.npz").read_bytes())
    assert probe_cli(run, f"--images={own_folder}")[0] == 0 and len(fits) == 5


def test_own_pictures_are_read_as_the_network_takes_them(own_folder):
    own = read_folder(own_folder, 32)
    assert own.names == ["a.jpg", "b.PNG", "c.webp", "d.bmp", "e.gif", "f.tif", "g.png", "h.png"]
    assert own.more == 0 and own.skipped == [] and own.told() == ""
    images = own.images
    assert images.shape == (8, 3, 32, 32) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[1], images[3])  # without loss both
    assert (images[7] == 255).all() and (images[6, 0] == images[6, 1]).all()


def test_own_pictures_are_cut_to_their_middle_and_put_on_white(tmp_path):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200  # the square in the middle
    Image.fromarray(wide).save(tmp_path / "a.png")
    clear = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    clear.save(tmp_path / "b.png")
    images = read_folder(tmp_path, 8).images
    assert (images[0] == 200).all() and (images[1] == 255).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_own_pictures_are_turned_as_exif_says_and_left_as_they_are_where_it_is_broken(tmp_path, suffix):
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20, :20] = 255  # light in the upper left
    seen = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    for orientation in seen:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / f"{orientation}.{suffix}", exif=exif)
    broken = [b"Exif\0\0MM\0", b"\0", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"]
    for i, exif in enumerate(broken if suffix != "tif" else []):  # Pillow writes no TIFF with these
        Image.fromarray(pixels).save(tmp_path / f"x{i}.{suffix}", exif=exif)
    own = read_folder(tmp_path, 8)
    assert not own.skipped
    for name, image in zip(own.names, own.images):
        corners = image[0][::7, ::7] > 127
        assert np.argwhere(corners).tolist() == [list(seen.get(int(name[0]) if name[0] != "x" else 1))], name


def test_pictures_of_more_than_8_bits_keep_their_grey(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
    for name in ("a.png", "b.tif", "c.pgm", "d.jp2"):
        grey.save(tmp_path / name)
    packed = bytes([0x64, 0x66, 0x46]) * 32  # 12 bits a pixel, 0x646 = 1606 of 4095: no library here writes that
    tags = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, len(packed))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    (tmp_path / "e.tif").write_bytes(header + packed + struct.pack("<H", len(tags)) + directory + bytes(4))
    own = read_folder(tmp_path, 4)
    assert own.names == ["a.png", "b.tif", "c.pgm", "d.jp2", "e.tif"] and (own.images == 100).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32, np.int16])
def test_a_picture_without_a_known_white_is_refused(tmp_path, dtype):
    """0 to 1, 0 to 255 or anything else: as 16 bits, it would come out black."""
    Image.fromarray(np.full((10, 10), 200, dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"1 tried; a\.tiff: .* of unknown scale: save it with"):
        read_folder(tmp_path, 8)


def test_unreadable_files_are_skipped_and_named(tmp_path):
    picture = Image.new("RGB", (9, 9), (200, 100, 50))
    picture.save(tmp_path / "p.png")
    film, whole = b"\0\0\1\xb3" + bytes(99), (tmp_path / "p.png").read_bytes()
    others = {
        "a.MPG": film, "b.mpeg": film, "c.h5": b"\x89HDF\r\n\x1a\n" + bytes(99), "d.emf": bytes(99), "e.grib": b"GRIB",
        "f.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n", "g.png": whole[:40], "h.jpg": b"", "i.mp4": film, "j.txt": b"text",
    }  # fmt: skip
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    own = read_folder(tmp_path, 4)
    assert own.names == ["p.png"] and (own.images[0, :, 0, 0] == (200, 100, 50)).all() and own.more == 0
    assert [name for name, _ in own.skipped] == [name for name in others if name[0] < "i"]
    assert own.told().startswith("skipped a.MPG (") and own.told().endswith(") and 3 more")
    assert "\n" not in own.told()


def test_a_sheet_takes_the_first_pictures_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MOST", 3)
    for i in (5, 3, 1, 4, 2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    own = read_folder(tmp_path, 4)
    assert own.names == ["1.png", "2.png", "3.png"] and len(own.images) == 3 and own.more == 2


def test_a_bad_folder_is_one_line_before_any_work(run, tmp_path, monkeypatch, probe_cli):
    monkeypatch.setattr(evaluate, "extract_features", None)
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


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "a.bmp"])
def test_a_picture_that_breaks_off_is_one_line(tmp_path, name):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    picture.save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (len(whole) // 2, len(whole) // 10, 30):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"no readable pictures \(1 tried; {name}: .*\): give a") as error:
            read_folder(tmp_path, 32)
        assert "\n" not in str(error.value)


def test_damaged_metrics_are_found_before_the_evaluation(run, probe_cli, monkeypatch):
    monkeypatch.setattr(evaluate, "extract_features", None)
    (run / "metrics.csv").write_text("a,b\n")
    status, _, err = probe_cli(run, "--pictures")
    assert status == 2 and "metrics.csv does not have the columns" in err


def test_a_probe_uses_no_more_threads_than_it_is_told(run, probe_cli, monkeypatch):
    def refused(self):
        raise AssertionError("a second thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert probe_cli(run, "--threads=1")[0] == 0
    with pytest.raises(AssertionError, match="a second thread"):
        probe_cli(run, "--threads=2")
