"""The evaluation of a run: a linear probe of its frozen encoder, with the baselines that it must be compared with."""

import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from minijepa.backend.threads import worker_threads
from minijepa.cli import tell
from minijepa.data import load_dataset, training_images
from minijepa.errors import ConfigError
from minijepa.evaluation.features import extract_features
from minijepa.evaluation.neighbours import knn_accuracy
from minijepa.evaluation.probing import linear_probe
from minijepa.files import replaced
from minijepa.models import IJEPA, Classifier
from minijepa.pictures import confusion_picture
from minijepa.pictures.canvas import LABEL, shortened
from minijepa.training import checkpoint


def labelled_images(config, dataset, split):
    """(training images, labels, evaluated images, labels).

    ``test``: all training images against the test set. ``val``: the run's own training images against the ones that it
    held back (``val_size``), which is where settings are chosen.
    """
    if split == "test":
        return dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels
    if not config.val_size:
        raise ConfigError("--split val: this run held no images back; train with --set val_size=5000")
    return training_images(config, dataset)


@dataclass
class ProbedEncoder:
    """An encoder under examination, the training images that it may use, and the images that it is asked about.

    ``kind``: of the latter: "test", "val" or, for want of these, "training"; ``file``: the checkpoint, beside which
    results are written. What is derived, features and the linear probe, is computed when first asked for, and once.
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
    suffix: str = ""  # of the names of what is written

    @cached_property
    def features(self):
        return extract_features(self.model, self.train, self.encoder, self.threads)

    @cached_property
    def test_features(self):
        return extract_features(self.model, self.test, self.encoder, self.threads)

    @cached_property
    def probe(self):
        return linear_probe(self.features, self.train_y, self.test_features, self.test_y, len(self.classes))

    @cached_property
    def classifier(self):
        """The one that came with the encoder, or the linear probe's."""
        return self.model.classifier or Classifier(self.probe.weight, self.probe.bias, self.classes)

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
    """(file, what it says about itself, its model) of a run folder, a checkpoint file or an exported encoder."""
    file = checkpoint.file_of(path)
    if file.parent.is_dir() and not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{file.parent} can't be written to, so the results would be lost: copy the run elsewhere")
    about, arrays = checkpoint.read(file)
    model = checkpoint.model_of(about, arrays, file, device)
    model.network(encoder)  # says so if it has none
    return file, about, model


def probed_run(path, data_dir="data", device="cpu", threads=None, split="test", encoder="target"):
    """(ProbedEncoder, what its checkpoint says about itself, the run's own training images)."""
    threads = worker_threads(threads)
    file, about, model = opened(path, device, encoder)
    dataset = load_dataset(about["dataset"], data_dir, download=False)
    images = labelled_images(model.config, dataset, split)
    suffix = suffix_of(file, about) + ("" if (split, encoder) == ("test", "target") else f"-{split}-{encoder}")
    probed = ProbedEncoder(model, dataset.classes, *images, split, about["step"], file, encoder, threads, suffix)
    return probed, about, training_images(model.config, dataset)[0]


def suffix_of(file, about):
    """What the names of results get, so that each file that stands in a folder has its own."""
    if checkpoint.is_exported(about):
        return f"-{file.stem}"
    return file.stem.removeprefix("checkpoint") if file.stem.startswith("checkpoint-") else ""  # as of epoch: -0005


def evaluate(probed, about, say=tell):
    """Probe a run and its baselines; write ``probe.json`` and ``confusion.png`` into its folder; return the results."""
    started = time.perf_counter()
    s, model = probed, probed.model
    if about.get("provenance"):
        say(about["provenance"])
    say(f"{s.file}, step {s.step}: {s.encoder} encoder, {len(s.train):,} training and {len(s.test):,} {s.kind} images")

    untrained = IJEPA(model.config, model.config.seed, model.device)
    untrained.mean, untrained.std = model.mean, model.std
    baselines = {
        "random-init encoder": lambda x: extract_features(untrained, x, s.encoder, s.threads),
        "raw pixels": lambda x: x.reshape(len(x), -1).astype(np.float32) / 255.0,
    }
    results = {}
    say(f"{'':20}  linear probe   kNN (k=20)")
    for name in ("I-JEPA features", *baselines):
        if name in baselines:
            features, test_features = baselines[name](s.train), baselines[name](s.test)
            probe = linear_probe(features, s.train_y, test_features, s.test_y, len(s.classes))
        else:
            features, test_features, probe = s.features, s.test_features, s.probe
        knn = knn_accuracy(features, s.train_y, test_features, s.test_y, len(s.classes))
        results[name] = probe, knn
        say(f"{name:20}  {100 * probe.accuracy:11.2f}%  {100 * knn:10.2f}%{_remarks(probe)}")

    report = {
        "checkpoint": str(s.file), "step": s.step, "dataset": about["dataset"], "split": s.kind,
        "encoder": s.encoder, "device": model.device, "seconds": round(time.perf_counter() - started, 1),
        "training_images": len(s.train), f"{s.kind}_images": len(s.test),
        "results": {name: _summary(probe, knn) for name, (probe, knn) in results.items()},
        "classes": list(s.classes), "confusion": s.probe.confusion.tolist(),
    }  # fmt: skip
    out, picture = s.folder / f"probe{s.suffix}.json", s.folder / f"confusion{s.suffix}.png"
    with replaced(out, "w") as written:
        written.write(json.dumps(report, indent=2) + "\n")
    confusion_picture(s.probe.confusion, s.classes, picture, s.note)
    say(f"L2 strength {s.probe.l2:g}, chosen on a tenth of the training images; {report['seconds']:.0f} s")
    say(f"wrote {out} and {picture}")
    return report


def _remarks(probe):
    """What keeps the figure from being trusted, for the end of its line."""
    text = "" if probe.converged else f"   not converged: gradient norm {probe.gradient_norm:.1e}"
    if probe.at_edge:
        text += f"   l2 {probe.l2:g} is the {probe.at_edge} tried: a better one may lie beyond"
    return text


def _summary(probe, knn):
    return {
        "linear_probe": probe.accuracy, "knn": knn, "l2": probe.l2, "l2_at_edge": probe.at_edge,
        "sweep": [list(pair) for pair in probe.sweep], "iterations": probe.iterations,
        "gradient_norm": probe.gradient_norm, "converged": probe.converged,
    }  # fmt: skip
