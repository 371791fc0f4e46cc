"""Checkpoints: one .npz file with everything that a run needs to go on, readable without pickle."""

import dataclasses
import json
import textwrap
from pathlib import Path

import numpy as np

from minijepa.backend import to_device, to_numpy
from minijepa.config import Config
from minijepa.errors import CheckpointError, ConfigError
from minijepa.files import replaced, shell_word
from minijepa.models import IJEPA
from minijepa.nn import check_state
from minijepa.training import exported

FORMAT = 2
FILE, PREVIOUS = "checkpoint.npz", "checkpoint-previous.npz"


@dataclasses.dataclass
class Progress:
    """How far a run has come: ``step`` steps are done; ``sums`` of what this epoch's row of metrics will average."""

    step: int = 0
    sums: dict = dataclasses.field(default_factory=dict)


def save(path, model, optimizer, progress, data):
    """Write a checkpoint, whole or not at all: into a temporary file, flushed to the disk, then renamed.

    The one that stood there is kept as checkpoint-previous.npz, in case that the disk damages this one later.
    ``data``: what the run trains on, {"dataset": name, "images": how many, "crc32": of their bytes}; the model carries
    the channel statistics.
    """
    about = {
        "format": FORMAT, "config": model.config.to_dict(), **data,
        "mean": [float(x) for x in model.mean], "std": [float(x) for x in model.std],
        "step": progress.step, "sums": progress.sums, "optimizer_steps": optimizer.steps,
    }  # fmt: skip
    arrays = {f"model/{name}": values for name, values in model.state_dict().items()}
    for name in ("m", "v"):  # by parameter, like the model
        moment = model.flat.named(getattr(optimizer, name))
        arrays |= {f"adam_{name}/{key}": to_numpy(values) for key, values in moment.items()}
    with replaced(path, previous=Path(path).with_name(PREVIOUS)) as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)


def file_of(path):
    """The checkpoint file that ``path`` means: a run folder's, or the path itself."""
    path = Path(path)
    return path / FILE if path.is_dir() else path


def read(path):
    """(about, arrays) of a checkpoint file or of a run folder's. Raises CheckpointError in one line.

    An array with a flipped bit is found too: every part of the file has a CRC-32.
    """
    path = file_of(path)
    try:
        return _read(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_way_back(path)}") from None


def _read(path):
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a file")
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        found = about["format"]
        if is_exported(about):
            exported.check(about, arrays)
            return about, arrays
        if found == FORMAT:
            _check_about(about)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}: give a run folder or a checkpoint file") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    except Exception as error:  # whatever zipfile, NumPy and json raise for bytes that are not theirs
        reason = textwrap.shorten(repr(str(error))[1:-1], 200)  # zipfile's may quote half of the file
        raise CheckpointError(f"{path} is not a whole minijepa checkpoint ({reason})") from None
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found!r:.50}, this version reads {FORMAT}")
    return about, arrays


def _way_back(path):
    """How to go on from the checkpoint before the one at ``path``, if it is whole."""
    previous = path.with_name(PREVIOUS)
    if path.name != FILE or not previous.exists():
        return ""
    try:
        step = _read(previous)[0]["step"]
    except CheckpointError:
        return f"; {previous} is no better"
    return f"; the one before it, of step {step}, is whole: cp {shell_word(previous)} {shell_word(path)}"


def _check_about(about):
    """Raise ValueError for an ``about`` that ``save`` would not have written."""
    whole = ("step", "optimizer_steps", "images", "crc32")
    kinds = {"config": dict, "dataset": str, "mean": list, "std": list, "sums": dict, **dict.fromkeys(whole, int)}
    for name, kind in kinds.items():
        if type(about[name]) is not kind or (kind is int and about[name] < 0):
            raise ValueError(f"{name} is {about[name]!r}")
    if not all(isinstance(value, float) for value in [*about["mean"], *about["std"], *about["sums"].values()]):
        raise ValueError("a statistic is not a number")


def is_exported(about):
    """Whether a file holds an encoder alone (training/exported.py)."""
    return about.get("kind") == exported.KIND


def load(path, device="cpu"):
    """The model of a checkpoint file, a run folder or an exported encoder, ready for ``encode``.

    An IJEPA, or an ImageEncoder where the file has no more; with its channel statistics.
    """
    return model_of(*read(path), path, device)


def model_of(about, arrays, path, device="cpu"):
    """The model of what :func:`read` gave for ``path``."""
    config = _config(about, path)
    try:
        if is_exported(about):
            return exported.model_of(about, arrays, config, device)
        model = IJEPA(config, device=device)
        model.load_state_dict(_part(arrays, "model/"))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    model.mean, model.std = tuple(about["mean"]), tuple(about["std"])
    return model


def _config(about, path):
    """The Config of a checkpoint. A setting that it does not know, being younger, has its default."""
    try:
        return Config.from_dict(about["config"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def restore(path, model, optimizer, data):
    """Fill a run's model and optimizer from its checkpoint; return its Progress.

    Raises CheckpointError if the checkpoint was written with other settings than the model's, or on other ``data``
    (see :func:`save`): going on would be another run.
    """
    about, arrays = read(path)
    if is_exported(about):
        raise CheckpointError(f"{path} is an exported encoder: a run can't go on without the predictor and the moments")
    here = {**model.config.to_dict(), **data}
    there = {**_config(about, path).to_dict(), **{name: about[name] for name in data}}
    for name in here:
        if there[name] != here[name]:
            then, now = (textwrap.shorten(str(values[name]), 100) for values in (there, here))
            raise CheckpointError(f"{path} was written with {name} {then}, not {now}")
    model.load_state_dict(_part(arrays, "model/"))
    for name in ("m", "v"):
        moment = _part(arrays, f"adam_{name}/")
        check_state(moment, model.flat.parameters)
        for key, where in model.flat.slices.items():
            getattr(optimizer, name)[where] = to_device(moment[key].ravel(), model.device)
    optimizer.steps = about["optimizer_steps"]
    return Progress(about["step"], about["sums"])


def _part(arrays, prefix):
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
