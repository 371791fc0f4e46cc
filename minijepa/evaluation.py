"""The evaluation of a run: a linear probe of its frozen encoder, with the baselines that it must be compared with."""

import json
import os
import time

import numpy as np

from minijepa import checkpoint
from minijepa.data import load_dataset, training_images
from minijepa.errors import ConfigError, tell
from minijepa.features import extract_features, worker_threads
from minijepa.files import replaced
from minijepa.models import IJEPA
from minijepa.pictures import confusion_picture
from minijepa.probing import knn_accuracy, linear_probe


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


def evaluate(path, data_dir="data", device="cpu", threads=None, split="test", encoder="target", say=tell):
    """Probe a run and its baselines; write ``probe.json`` and ``confusion.png`` into its folder; return the results."""
    started = time.perf_counter()
    threads = worker_threads(threads)
    file = checkpoint.file_of(path)
    folder = file.parent
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} can't be written to, so the results would be lost: copy the run elsewhere")
    about, arrays = checkpoint.read(file)
    model = checkpoint.model_of(about, arrays, file, device)
    dataset = load_dataset(about["dataset"], data_dir, download=False)
    train, train_y, test, test_y = labelled_images(model.config, dataset, split)
    classes = len(dataset.classes)
    say(f"{file}, step {about['step']}: {encoder} encoder, {len(train):,} training and {len(test):,} {split} images")

    untrained = IJEPA(model.config, model.config.seed, device)
    untrained.mean, untrained.std = model.mean, model.std
    inputs = {
        "I-JEPA features": lambda x: extract_features(model, x, encoder, threads),
        "random-init encoder": lambda x: extract_features(untrained, x, encoder, threads),
        "raw pixels": lambda x: x.reshape(len(x), -1).astype(np.float32) / 255.0,
    }
    results = {}
    say(f"{'':20}  linear probe   kNN (k=20)")
    for name, features_of in inputs.items():
        features, test_features = features_of(train), features_of(test)
        probe = linear_probe(features, train_y, test_features, test_y, classes)
        knn = knn_accuracy(features, train_y, test_features, test_y, classes)
        results[name] = probe, knn
        warning = "" if probe.converged else f"   not converged: gradient norm {probe.gradient_norm:.1e}"
        say(f"{name:20}  {100 * probe.accuracy:11.2f}%  {100 * knn:10.2f}%{warning}")

    probe = results["I-JEPA features"][0]
    report = {
        "checkpoint": str(file), "step": about["step"], "dataset": about["dataset"], "split": split,
        "encoder": encoder, "device": device, "seconds": round(time.perf_counter() - started, 1),
        "training_images": len(train), f"{split}_images": len(test),
        "results": {name: _summary(probe, knn) for name, (probe, knn) in results.items()},
        "classes": list(dataset.classes), "confusion": probe.confusion.tolist(),
    }  # fmt: skip
    suffix = "" if (split, encoder) == ("test", "target") else f"-{split}-{encoder}"
    out = folder / f"probe{suffix}.json"
    with replaced(out, "w") as written:
        written.write(json.dumps(report, indent=2) + "\n")
    confusion_picture(probe.confusion, dataset.classes, folder / f"confusion{suffix}.png")
    say(f"L2 strength {probe.l2:g}, chosen on a tenth of the training images; {report['seconds']:.0f} s")
    say(f"wrote {out} and {folder / f'confusion{suffix}.png'}")
    return report


def _summary(probe, knn):
    return {
        "linear_probe": probe.accuracy, "knn": knn, "l2": probe.l2, "sweep": [list(pair) for pair in probe.sweep],
        "iterations": probe.iterations, "gradient_norm": probe.gradient_norm, "converged": probe.converged,
    }  # fmt: skip
