"""report.html: everything in a run folder on one page; it only reads files and computes nothing."""

import contextlib
from dataclasses import fields

from minijepa.cli import counted
from minijepa.config import Config
from minijepa.errors import ConfigError
from minijepa.files import open_plain, read_json, replaced, shell_word
from minijepa.pictures import report as page
from minijepa.pictures.curves import HUGE
from minijepa.training.metrics import COLUMNS, CURVES, curves_of, read_metrics

FILE = "report.html"
PROBES = ("probe.json", "probe-val-target.json", "probe-quick.json", "probe-val-target-quick.json")  # best first
PICTURES = {
    "masks": "What the context encoder sees of six images, and the blocks to be predicted.",
    "neighbours": "Queries and their nearest training images: these should share what is shown, not its colours.",
    "pca": "The first three principal components of patch features, as colours: parts should stand out.",
    "predictions": "A hidden block, made of the patches that are nearest to what the predictor says.",
    "confusion": "Which classes the linear probe takes for which.",
    "own_images": "Your own pictures.",
}


def write_report(folder):
    """Write report.html into a run folder; its path, or None for a folder without config.json or metrics."""
    try:
        about, rows = read_json(folder / "config.json"), read_metrics(folder)
        config = Config.from_dict(about["config"])
    except (ConfigError, TypeError, KeyError):
        return None
    headline, table = _probe(folder, rows) or (_headline(rows), [])
    name = folder.resolve().name
    changed = {field.name for field in fields(Config) if getattr(config, field.name) != field.default}
    sections = [
        page.header(name, _chips(about, config, rows), *headline),
        *table,
        *_curves(folder, rows),
        *_pictures(folder),
        page.heading("Settings"),
        page.settings_list(config.to_dict(), changed),
        page.heading("Where it comes from"),
        page.facts_list(_facts(about)),
        page.heading("Going on"),
        page.commands_list(_commands(folder, len(rows) < config.epochs)),
        page.footer("Bold settings differ from the specification's. Written by minijepa; this page needs no network."),
    ]
    with replaced(folder / FILE, "w", encoding="utf-8", errors="replace") as file:  # a path may not be UTF-8
        file.write(page.report_page(f"{name}: report", sections))
    return folder / FILE


def _chips(about, config, rows):
    made = about.get("made") if isinstance(about.get("made"), dict) else {}
    seconds = sum(s for row in rows if abs(s := float(row["seconds"])) < HUGE)
    told = counted(round(seconds / 60), "minute") if seconds >= 90 else counted(round(seconds), "second")
    least = "at least " if about.get("resumed") else ""  # of an epoch, only the part after an interruption is timed
    return [
        f"preset {about.get('preset', 'unknown')}", f"data {about.get('dataset', 'unknown')}",
        f"epoch {len(rows)} of {config.epochs}", f"{config.num_parameters:,} trained parameters",
        f"{least}{told} of training",
        *([f"on {made['device']}"] if "device" in made else []), f"seed {config.seed}",
    ]  # fmt: skip


def _headline(rows):
    """(figure, sentence, tone) without a probe"""
    measured = [float(row["knn"]) for row in rows if row["knn"]]
    figure = f"{100 * measured[-1]:.1f}%" if measured else "…"
    text = "kNN on training images, during training. " if measured else ""
    return figure, text + "Not probed yet: probe.py tells what the features are worth.", ""


def _probe(folder, rows):
    """((figure, sentence, tone), the section) of the best probe's file; None if there is none that can be shown."""
    for name in PROBES:
        found = read_json(folder / name)
        with contextlib.suppress(KeyError, StopIteration, TypeError, ValueError, ArithmeticError, AttributeError):
            return _probe_headline(found, rows), _probe_table(name, found)
    return None


def _probe_headline(found, rows):
    accuracy, verdict = next(iter(found["results"].values()))["linear_probe"], found["verdict"]
    tone = "good" if verdict.endswith("it has learnt") else "" if "it has learnt" in verdict else "bad"
    text, last = f"Linear probe: {verdict}.", int(rows[-1]["step"]) if rows else 0
    if found["step"] < last:
        text += f" That was at step {found['step']:,}; the run is now at {last:,}: probe it again."
    return f"{100 * accuracy:.1f}%", text, tone


def _probe_table(name, found):
    rows = [(row, figures["linear_probe"], figures["knn"]) for row, figures in found["results"].items()]
    split = found.get("split", "test")
    what = {"val": "held-back training"}.get(split, split)
    note = (
        f"{found['training_images']:,} training and {found[f'{split}_images']:,} {what} images, the {found['encoder']} "
        f"encoder of step {found['step']:,} ({name})."
    )
    if "quick" in name:
        note += " One image in ten: a first impression."
    return [page.heading("What the features are worth"), page.figures_table(rows, note)]


def _curves(folder, rows):
    if not rows:
        return []
    grid = page.curves_grid(curves_of(folder, rows), {title: text for title, (_, text) in CURVES.items()})
    return [page.heading("Training, epoch by epoch"), grid, page.numbers_table(COLUMNS, rows, "All numbers, by epoch")]


def _pictures(folder):
    found = []
    for name, caption in PICTURES.items():
        with contextlib.suppress(OSError), open_plain(folder / f"{name}.png", "rb") as file:
            found.append((f"{name}.png", file.read(), caption))
    return [page.heading("Pictures"), page.pictures_grid(found)] if found else []


def _facts(about):
    """What made the run, and what resumed it."""
    facts = []
    resumed = about.get("resumed") if isinstance(about.get("resumed"), list) else []
    for when, made in [("started", about.get("made")), *(("went on", entry) for entry in resumed)]:
        if not isinstance(made, dict):
            continue
        blas = made.get("blas") if isinstance(made.get("blas"), dict) else {}
        facts += [(when, made.get("date", "")), ("command", made.get("command", ""))]
        facts += [("at step", made["step"])] if "step" in made else []
        facts += [
            ("minijepa", f"{made.get('version', '')} {made.get('commit') or ''}"),
            ("Python, NumPy", f"{made.get('python', '')}, {made.get('numpy', '')}"),
            ("BLAS", " ".join(str(blas[part]) for part in ("name", "version", "kernel") if blas.get(part))),
            ("device", _device(made)),
        ]
    return facts or [("started", "before config.json kept this")]


def _device(made):
    if made.get("device") != "cpu":
        return made.get("device", "")
    processes = f" in each of {made['processes']} processes" if "processes" in made else ""
    return f"cpu, --threads {made.get('threads', '')}{processes}"


def _commands(folder, unfinished):
    run = shell_word(folder)
    return [
        *([("train on", f"python train.py --run-dir {run} --resume")] if unfinished else []),
        ("a first impression of the features, half a minute on 2 cores", f"python probe.py {run} --quick"),
        ("the real figures", f"python probe.py {run}"),
        ("and all pictures", f"python probe.py {run} --pictures"),
        ("your own pictures", f"python probe.py {run} --images FOLDER"),
        ("beside another run", f"python -m minijepa.training.curves {run} runs/OTHER"),
        ("the encoder alone, for timm and others", f"python -m minijepa.export {run} encoder.npz"),
    ]
