"""steps.csv, python -m minijepa.training.curves, and report.html."""

import html
import json
import os
import re
import shutil

import numpy as np
import pytest
from browser import needs_browser, told
from conftest import before_step, begun
from PIL import Image
from tiny import NETWORK, noise, raising, refusal

from minijepa import Config
from minijepa.errors import ConfigError, TrainingError
from minijepa.pictures import Curves, curves_picture, report
from minijepa.training import checkpoint, curves
from minijepa.training.metrics import curves_of, read_metrics
from minijepa.training.report import _chips, write_report
from minijepa.training.run import Run
from minijepa.training.steps import append_steps, read_steps, start_steps
from minijepa.training.trainer import Trainer

SETTINGS = NETWORK | dict(batch_size=8, epochs=2, warmup_epochs=0.5, knn_every=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = run_in(tmp_path_factory.mktemp("runs") / "<b>&run")
    run.train(say=lambda text: None)
    return run.folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / trained.name)


def run_in(folder, **changes):
    return begun(folder, Trainer(Config(**SETTINGS | changes), noise(32)))


# ------------------------------------------------------------------------------------------------------------ steps.csv


def test_steps_has_a_row_a_step_whose_means_are_the_epochs(folder):
    step, loss, norm, rate = np.array(read_steps(folder, 8), float).T
    np.testing.assert_array_equal(step, np.arange(1, 9))
    for epoch, row in enumerate(read_metrics(folder)):
        of_epoch = slice(4 * epoch, 4 * epoch + 4)
        np.testing.assert_allclose(loss[of_epoch].mean(), float(row["loss"]), rtol=1e-4)
        np.testing.assert_allclose(norm[of_epoch].mean(), float(row["grad_norm"]), rtol=1e-4)
        assert rate[of_epoch][-1] == pytest.approx(float(row["lr"]), rel=1e-4)


def test_rows_of_steps_from_after_the_checkpoint_are_dropped_even_torn_ones(folder):
    whole = (folder / "steps.csv").read_text()
    with open(folder / "steps.csv", "a") as file:
        file.write("9,1.5,0.25,0.001\r\n10,1.")  # killed while it was written
    trainer = Trainer(Config(**SETTINGS), noise(32))
    Run(folder, trainer).resume(say=lambda text: None)
    assert (folder / "steps.csv").read_text() == whole


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n", "other columns"),
        ("", "other columns"),
        ("step,loss,grad_norm,lr\r\n1,2,3,4\r\n", "it ends before step 8"),
        ("step,loss,grad_norm,lr\r\n2,2,3,4\r\n1,2,3,4\r\n", "after step 2 comes 1, 2, 3, 4"),
        ("step,loss,grad_norm,lr\r\n1,2,3\r\n", "damaged"),
        ("step,loss,grad_norm,lr\r\n1,2,x,3\r\n", "damaged"),
        ("step,loss,grad_norm,lr\r\n\r\n", "damaged"),
    ],
)
def test_damaged_steps_are_one_line(tmp_path, content, words):
    (tmp_path / "steps.csv").write_text(content)
    with pytest.raises(ConfigError, match=words) as error:
        read_steps(tmp_path, 8)
    assert "\n" not in str(error.value)


def test_a_run_without_steps_goes_on(folder):
    (folder / "steps.csv").unlink()
    assert read_steps(folder, 8) == []
    Run(folder, Trainer(Config(**SETTINGS), noise(32))).resume(say=lambda text: None)
    assert (folder / "steps.csv").read_text().count("\n") == 1
    assert read_steps(folder, 8) == []  # nor does it matter if it is interrupted at once, and goes on again
    start_steps(folder)
    append_steps(folder, [(9, 1 / 3, float("inf"), 1e-3)])
    assert read_steps(folder, 8) == []  # all rows are later: killed before the checkpoint of step 9
    assert read_steps(folder, 9) == [("9", "0.333333", "inf", "0.001")]


def test_steps_show_how_a_run_went_wrong(tmp_path, monkeypatch):
    run = run_in(tmp_path / "run")
    before_step(monkeypatch, 3, raising(TrainingError("step 3: the loss is nan")))
    with pytest.raises(TrainingError):
        run.train(say=lambda text: None)
    monkeypatch.undo()
    assert [row[0] for row in read_steps(run.folder, 3)] == ["1", "2", "3"]
    assert checkpoint.read(run.folder)[0]["step"] == 0
    again = Run(run.folder, Trainer(Config(**SETTINGS), noise(32)))  # from its first step on
    again.resume(say=lambda text: None)
    again.train(say=lambda text: None)
    assert [row[0] for row in read_steps(run.folder, 8)] == [str(step) for step in range(1, 9)]


# --------------------------------------------------------------------------------------------------------------- curves


def test_curves_show_steps_chance_zero_and_the_untrained_network(folder):
    found = curves_of(folder, read_metrics(folder))
    x, loss = found.fine["loss a dimension"]
    np.testing.assert_allclose(x, np.arange(1, 9) / 4)
    np.testing.assert_allclose(loss[:4].mean(), found.columns["loss a dimension"][0], rtol=1e-4)
    untrained = json.loads((folder / "config.json").read_text())["untrained"]
    assert found.levels["kNN accuracy"] == {"untrained": untrained["knn"], "chance": 0.1}
    assert found.levels["content R2"] == {"positions alone": 0.0, "untrained": untrained["content_r2"]}
    trainer = Trainer(Config(**SETTINGS), noise(32))
    assert untrained["rank_me"] == trainer.monitors.collapse()["rank_me"]
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"untrained": untrained | {"knn": 1e305}}))
    assert curves_of(folder, read_metrics(folder)).levels["kNN accuracy"] == {"chance": 0.1}  # that can't be drawn
    for name in ("steps.csv", "config.json"):
        (folder / name).unlink()
    found = curves_of(folder, read_metrics(folder))
    assert not found.fine and found.levels == {"content R2": {"positions alone": 0.0}}


def test_curves_of_several_runs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    captions = []
    monkeypatch.setattr(curves, "curves_picture", lambda *args: captions.append(args[-1]) or curves_picture(*args))
    assert curves.main([str(folder), str(folder)]) == 0
    assert "pale: every step" in captions[0] and "blue number" not in captions[0]  # only one run's picture has it
    assert capsys.readouterr().out == "wrote curves-compared.png\n"
    with Image.open("curves-compared.png") as picture:
        assert picture.height > 600
    for runs, words in (([folder] * 7, "at most 6"), (["nowhere"], "nowhere/metrics.csv can't be read")):
        assert words in refusal(capsys, curves.main, *runs)


# --------------------------------------------------------------------------------------------------------------- report


def probed(folder, verdict="12.6 points above the untrained encoder and 13.7 above raw pixels: it has learnt"):
    row = {"linear_probe": 0.551, "knn": 0.522}
    results = {"I-JEPA features": row, "random-init encoder": row | {"knn": 0.342}, "raw pixels": row}
    about = {"results": results, "verdict": verdict, "split": "test", "encoder": "target", "step": 8}
    about |= {"training_images": 32, "test_images": 5}
    (folder / "probe.json").write_text(json.dumps(about))
    Image.new("RGB", (30, 20), "red").save(folder / "masks.png")


def test_a_report_holds_what_the_folder_tells_and_needs_no_network(folder):
    probed(folder)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "://" not in text and not re.search(r"<(script|link|img)[^>]* (src|href)=\"(?!data:)", text)
    assert "&lt;b&gt;&amp;run" in text and "<b>&run" not in text
    for words in ("55.1%", "it has learnt", "34.20%", "batch_size", "python probe.py", "masks.png", "All numbers"):
        assert words in text
    assert "probe it again" not in text and "cpu, --threads 1<" in text
    about = json.loads((folder / "config.json").read_text())
    assert html.escape(about["made"]["command"]) in text and about["made"]["date"] in text


def test_a_report_says_if_the_run_went_on_after_its_probe(folder):
    probed(folder)
    path = folder / "probe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 4}))
    assert "That was at step 4; the run is now at 8: probe it again." in write_report(folder).read_text("utf-8")


def test_a_report_is_written_without_missing_or_damaged_files(folder):
    (folder / "probe.json").write_text('{"results": {"I-JEPA features": 3}}')
    (folder / "probe-quick.json").write_text("{")
    for picture in folder.glob("*.png"):
        picture.unlink()
    (folder / "steps.csv").write_text("damaged")
    assert "Not probed yet" in write_report(folder).read_text(encoding="utf-8")
    (folder / "metrics.csv").unlink()
    assert write_report(folder) is None


def test_a_path_that_is_not_utf_8_and_one_with_braces(folder):
    for name, shown in ((b"caf\xe9", "caf?"), (b"{BODY}", "{BODY}")):
        folder = folder.rename(folder.with_name(os.fsdecode(name)))
        text = write_report(folder).read_text(encoding="utf-8")
        assert shown in html.unescape(text) and text.count("<h1") == 1


@pytest.mark.parametrize(
    ("about", "seconds", "words"),
    [
        ({}, [1.2], "1 second of training"),
        ({}, [89.6, "nan"], "90 seconds of training"),
        ({"resumed": [{}]}, [60, 60], "at least 2 minutes of training"),
        ({}, [1e308, 1e308], "0 seconds of training"),
    ],
)
def test_how_long_a_run_took(about, seconds, words):
    assert words in _chips(about, Config(), [{"seconds": str(s)} for s in seconds])


def test_panels_say_what_their_points_are():
    run = Curves({"kNN": [0.1, 0.3], "none": [np.nan] * 2}, [1, 2], {"kNN": ([0.5, 1.0], [0.2, 0.2])})
    text = report.curves_grid(run, {})
    data = json.loads(html.unescape(re.search(r'data-points="(.*?)"', text)[1]))
    assert [point[-1] for point in data["points"]] == ["epoch 1: 0.1", "epoch 2: 0.3"]
    assert data["scale"][2:] == [0.5, 2.0] and data["points"][1][2] == report.RIGHT
    assert "not measured" in text


PLAY = """<script>
const told = { errors: [] };
addEventListener("error", event => told.errors.push(event.message));
addEventListener("securitypolicyviolation", event => told.errors.push(event.violatedDirective));
addEventListener("load", () => {
  const svg = document.querySelector("svg[data-points]"), box = svg.getBoundingClientRect();
  told.before = document.querySelector(".panel output").textContent;
  svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 1, clientY: box.top + 9 }));
  told.pointed = document.querySelector(".panel output").textContent;
  svg.dispatchEvent(new PointerEvent("pointerleave"));
  told.after = document.querySelector(".panel output").textContent;
  svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
  told.keyed = document.querySelector(".panel output").textContent;
  const button = document.querySelector(".pictures button");
  button.click();
  told.enlarged = document.querySelector("dialog").open;
  told.missing = [...document.images].filter(image => image.naturalWidth === 0 && image.alt).length;
  told.wide = document.documentElement.scrollWidth - innerWidth;
  document.body.append(Object.assign(document.createElement("pre"), { id: "told", textContent: JSON.stringify(told) }));
});
</script>"""


@needs_browser
@pytest.mark.parametrize("width", [500, 1400])
def test_a_report_in_a_browser(folder, tmp_path, width):
    probed(folder)
    page = tmp_path / "page.html"
    page.write_text(write_report(folder).read_text(encoding="utf-8").replace("<title>", f"{PLAY}<title>"))
    seen = told(page, "told", tmp_path / "profile", f"--window-size={width},900")
    assert seen["errors"] == [] and seen["missing"] == 0 and seen["wide"] <= 0
    assert seen["pointed"].startswith("epoch 1: ") and seen["keyed"].startswith("epoch 1: ")
    assert seen["before"] == seen["after"] and seen["enlarged"]
