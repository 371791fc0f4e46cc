"""The evaluation of a run: a linear probe of its frozen encoder, and the baselines to compare it with."""

import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minijepa.cli import tell
from minijepa.data import load_dataset, training_images
from minijepa.errors import ConfigError
from minijepa.evaluation import kept
from minijepa.evaluation.neighbours import knn_accuracy
from minijepa.evaluation.probing import L2_GRID, linear_probe
from minijepa.evaluation.verdict import OURS, PIXELS, UNTRAINED, verdict
from minijepa.files import replaced
from minijepa.models import IJEPA, Classifier
from minijepa.pictures import confusion_picture
from minijepa.pictures.canvas import LABEL, shortened
from minijepa.training import checkpoint

QUICK = 10  # --quick: one image in ten
AT_ONCE = 2048  # images between two updates of the progress bar: whole chunks on every device


def progress(total, told, unit):
    """A progress bar that disappears at the end, and is shown only in a terminal."""
    return tqdm(total=total, desc=told, unit=unit, disable=None, leave=False, dynamic_ncols=True)


def labelled_images(config, dataset, split):
    """(training images, labels, evaluated images, labels).

    ``test``: all training images and the test set. ``val``: the run's own training images and those that it held back
    (``val_size``), for choosing settings.
    """
    if split == "test":
        return dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels
    if not config.val_size:
        raise ConfigError("--split val: this run held no images back; train with --set val_size=5000")
    return training_images(config, dataset)


@dataclass
class ProbedEncoder:
    """An encoder to evaluate, the training images to learn from, and the images to evaluate on.

    ``kind``: of the latter: "test", "val" or, without these, "training"; "own" for a user's pictures, which then stand
    in for both, without labels (None). ``file``: the checkpoint, next to which results are written. Features and the
    linear probe are computed once, on first use.
    """

    model: IJEPA
    classes: tuple
    train: np.ndarray
    train_y: np.ndarray
    test: np.ndarray
    test_y: np.ndarray
    kind: str
    step: int
    file: Path
    encoder: str = "target"
    threads: int | None = None
    suffix: str = ""  # of the names of the files written
    blocks: int = 1  # use the features after so many of the last blocks

    @cached_property
    def features(self):
        return self.features_of(self.model, self.train, OURS)

    @cached_property
    def test_features(self):
        return self.features_of(self.model, self.test, OURS)

    def features_of(self, model, images, told):
        found = []
        with progress(len(images), f"{told}, {len(images):,} images", "image") as bar:
            for start in range(0, len(images), AT_ONCE):
                some = images[start : start + AT_ONCE]
                found.append(model.features(some, self.encoder, self.threads, self.blocks))
                bar.update(len(some))
        return np.concatenate(found)

    @cached_property
    def probe(self):
        return self.probe_of(self.features, self.test_features, OURS)

    def probe_of(self, features, test_features, told):
        with progress(len(L2_GRID) + 1, f"{told}, linear probe", "fit") as bar:
            arrays = features, self.train_y, test_features, self.test_y
            return linear_probe(*arrays, len(self.classes), done=bar.update)

    @cached_property
    def classifier(self):
        """The one that came with the encoder, the one next to the checkpoint, or the linear probe's."""
        return self.model.classifier or kept.kept_classifier(self) or self.fitted_classifier()

    def fitted_classifier(self):
        """The linear probe's, which is kept next to the checkpoint."""
        classifier = Classifier(self.probe.weight, self.probe.bias, self.classes)
        kept.keep_classifier(self, classifier)
        return classifier

    @property
    def folder(self):
        return self.file.parent

    @property
    def asked(self):
        return {"val": "held-back"}.get(self.kind, self.kind)

    @property
    def note(self):
        """Which model this is, for the corner of a picture."""
        is_run = hasattr(self.model, "predictor")
        return shortened(f"{self.folder.resolve().name if is_run else self.file.stem}, step {self.step:,}", 240, LABEL)


def opened(path, device="cpu", encoder="target"):
    """(file, its metadata, its model) of a run folder, a checkpoint file or an exported encoder."""
    file = checkpoint.file_of(path)
    if file.parent.is_dir() and not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{file.parent} can't be written to, so the results would be lost: copy the run elsewhere")
    about, model = checkpoint.loaded(file, device)
    model.network(encoder)  # raises an error if there is none
    return file, about, model


def probed_run(
    path, data_dir="data", device="cpu", threads=None, split="test", encoder="target", quick=False, blocks=1
):
    """(ProbedEncoder, its checkpoint's metadata, the run's own training images).

    ``quick``: one image in ten, for learning and for evaluation. ``blocks``: see ``ImageEncoder.features``.
    """
    file, about, model = opened(path, device, encoder)
    model.check_blocks(blocks)
    dataset = load_dataset(about["dataset"], data_dir, download=False)
    images = [x[:: QUICK if quick else 1] for x in labelled_images(model.config, dataset, split)]
    suffix = suffix_of(file, about) + ("" if (split, encoder) == ("test", "target") else f"-{split}-{encoder}")
    suffix += ("-quick" if quick else "") + (f"-{blocks}-blocks" if blocks > 1 else "")
    where = split, about["step"], file, encoder, threads, suffix, blocks
    probed = ProbedEncoder(model, dataset.classes, *images, *where)
    return probed, about, training_images(model.config, dataset)[0]


def suffix_of(file, about):
    """The suffix of result names, so that each checkpoint file in a run's folder has its own results."""
    if checkpoint.is_exported(about):
        return f"-{file.stem}"
    name = file.stem.removeprefix("checkpoint-")  # as of epoch: 0005
    is_one_of_several = name != file.stem or file.with_name(checkpoint.FILE).exists()
    return f"-{name}" if is_one_of_several and file.name != checkpoint.FILE else ""


def evaluate(probed, about):
    """Probe a run and its baselines; write ``probe.json`` and ``confusion.png`` into its folder; return the results."""
    started = time.perf_counter()
    s = probed
    if about.get("provenance"):
        tell(about["provenance"])
    tell(f"{s.file}, step {s.step}: {s.encoder} encoder, {len(s.train):,} training and {len(s.test):,} {s.kind} images")
    if s.blocks > 1:
        tell(f"features after each of the last {s.blocks} blocks, side by side: {s.features.shape[1]} of them")
    tell(f"{'':20}  linear probe   kNN (k=20)")
    results = {OURS: _row(s, s.probe, s.features, s.test_features)}
    tell(_line(OURS, results[OURS]))
    s.fitted_classifier()
    for name, features, key in _baselines(s):
        row = kept.read_baselines(s).get(key)
        if row is None:
            row = _measured(s, name, features)
            kept.keep_baseline(s, key, name, row)
            tell(_line(name, row))
        else:
            tell(f"{_line(name, row)}   (computed before: {kept.BASELINES})")
        results[name] = {field: row[field] for field in results[OURS]}
    report = {
        "checkpoint": str(s.file), "step": s.step, "dataset": about["dataset"], "split": s.kind,
        "encoder": s.encoder, "blocks": s.blocks, "device": s.model.device,
        "seconds": round(time.perf_counter() - started, 1),
        "training_images": len(s.train), f"{s.kind}_images": len(s.test), "results": results,
        "verdict": verdict({name: row["linear_probe"] for name, row in results.items()}, len(s.test)),
        "classes": list(s.classes), "confusion": s.probe.confusion.tolist(),
    }  # fmt: skip
    out, picture = s.folder / f"probe{s.suffix}.json", s.folder / f"confusion{s.suffix}.png"
    with replaced(out, "w") as written:
        written.write(json.dumps(report, indent=2) + "\n")
    confusion_picture(s.probe.confusion, s.classes, picture, s.note)
    tell(f"L2 strength {s.probe.l2:g}, chosen on a tenth of the training images; {report['seconds']:.0f} s")
    tell(f"wrote {out}, {picture} and {kept.classifier_file(s)}")
    tell(f"verdict: {report['verdict']}")
    return report


def _baselines(s):
    """(name, images -> features, key under which its row is kept) of each baseline."""
    untrained = IJEPA(s.model.config, s.model.config.seed, s.model.device)
    untrained.mean, untrained.std = s.model.mean, s.model.std
    yield UNTRAINED, lambda x: s.features_of(untrained, x, UNTRAINED), kept.key_of(s, UNTRAINED, untrained)
    yield PIXELS, raw_pixels, kept.key_of(s, PIXELS)


def raw_pixels(images):
    """uint8 (N, 3, S, S) -> float32 (N, 3 S²), from 0 to 1"""
    return np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)


def _measured(s, name, features):
    train, test = features(s.train), features(s.test)
    return _row(s, s.probe_of(train, test, name), train, test)


def _row(s, probe, train, test):
    """The figures of a probe, and of kNN on the same features."""
    return {
        "linear_probe": probe.accuracy, "knn": knn_accuracy(train, s.train_y, test, s.test_y, len(s.classes)),
        "l2": probe.l2, "l2_at_edge": probe.at_edge, "sweep": [list(pair) for pair in probe.sweep],
        **asdict(probe.final),
    }  # fmt: skip


def _line(name, row):
    """A row of the table, with warnings about its figures."""
    text = f"{name:20}  {100 * row['linear_probe']:11.2f}%  {100 * row['knn']:10.2f}%"
    if not row["converged"]:
        text += f"   not converged: gradient norm {row['gradient_norm']:.1e}"
    if row["l2_at_edge"]:
        text += f"   l2 {row['l2']:g} is the {row['l2_at_edge']} tried: a better one may lie beyond"
    return text
