"""Checkpoints: one .npz file with everything that a run needs to resume, readable without pickle."""

import contextlib
import dataclasses
import json
import os
import textwrap
from pathlib import Path

import numpy as np

from minijepa.backend import to_device, to_numpy
from minijepa.config import Config
from minijepa.errors import CheckpointError, ConfigError
from minijepa.files import open_plain, replaced, shell_word
from minijepa.models import IJEPA
from minijepa.nn import check_state
from minijepa.training import exported
from minijepa.training.schema import check_arrays, check_fields, numbers, whole

FORMAT = 2
FILE, PREVIOUS = "checkpoint.npz", "checkpoint-previous.npz"
SUMS = {"loss", "grad_norm", "context_tokens", "target_tokens"}  # a step's results, which an epoch's row averages


@dataclasses.dataclass
class Progress:
    """How far a run has come: ``step`` steps are done; ``sums`` for the averages in this epoch's row of metrics."""

    step: int = 0
    sums: dict = dataclasses.field(default_factory=dict)


def save(path, model, optimizer, progress, data):
    """Write a checkpoint, completely or not at all: to a temporary file, flushed to disk, then renamed.

    The previous one is kept as checkpoint-previous.npz, in case the disk damages this one later. ``data``: what the run
    trains on, {"dataset": name, "images": how many, "crc32": of their bytes}; the model has the channel statistics.
    """
    about = {
        "format": FORMAT, "config": model.config.to_dict(), **data,
        "mean": [float(x) for x in model.mean], "std": [float(x) for x in model.std],
        "step": progress.step, "sums": progress.sums, "optimizer_steps": optimizer.steps,
    }  # fmt: skip
    flat, target, arrays = model.flat, model.target_flat, {}
    kinds = [("model", flat, flat.data), ("model", target, target.data)]
    kinds += [("adam_m", flat, optimizer.m), ("adam_v", flat, optimizer.v)]
    for kind, parameters, vector in kinds:  # a vector comes from a GPU in one piece
        arrays |= {f"{kind}/{name}": values for name, values in parameters.named(to_numpy(vector)).items()}
    with replaced(path, previous=Path(path).with_name(PREVIOUS)) as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)


# ------------------------------------------------------------------------------------------------------------- reading


def file_of(path):
    """The checkpoint file that ``path`` means: a run folder's, or the path itself."""
    path = Path(path)
    return path / FILE if path.is_dir() else path


def read(path):
    """(about, arrays) of a checkpoint file or of a run folder's. Raises CheckpointError in one line.

    Anything that :func:`save` would not write is refused: a damaged byte (every array has a CRC-32), compression, an
    unknown field, a number out of bounds. Only the arrays' names and shapes are left to compare with the model's.
    """
    path = file_of(path)
    with _refusals(path):
        arrays = _arrays(path)
        about = json.loads(arrays.pop("about").item())
        (exported.check if is_exported(about) else _check)(about, arrays)
    return about, arrays


@contextlib.contextmanager
def _refusals(path):
    """Turn any error into one line that names the file, and the previous checkpoint if that is intact."""
    try:
        yield
        return
    except FileNotFoundError:
        text = f"no checkpoint at {path}: give a run folder or a checkpoint file"
    except OSError as error:
        text = f"{path} can't be read: {error.strerror or error}"
    except (CheckpointError, ConfigError) as error:
        text = f"{path}: {error}"
    except Exception as error:  # zipfile, NumPy and json raise many kinds for damaged bytes
        reason = textwrap.shorten(repr(str(error))[1:-1], 200)  # zipfile's may quote half of the file
        text = f"{path} is not an intact minijepa checkpoint ({reason})"
    raise CheckpointError(text + _way_back(path))


def _way_back(path):
    """How to go on from the checkpoint before the one at ``path``, if that is intact."""
    previous = path.with_name(PREVIOUS)
    if path.name != FILE or not previous.exists():
        return ""
    try:
        about, _ = loaded(previous)
    except CheckpointError:
        return f"; {previous} is no better"
    return f"; the one before it, of step {about['step']}, is intact: cp {shell_word(previous)} {shell_word(path)}"


def _arrays(path):
    """{name: array} of an .npz file. Compressed parts, which could unpack to any size, are refused."""
    with open_plain(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        parts, size = file.zip.infolist(), os.fstat(raw.fileno()).st_size
        if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size:
            raise ValueError("parts are compressed")
        if damaged := file.zip.testzip():  # reads every part to its end, and compares its CRC-32
            raise ValueError(f"{damaged} is damaged")
        if len({*file.files}) < len(parts):
            raise ValueError("a part occurs twice")
        return dict(file)


def _check(about, arrays):
    """Raise CheckpointError for anything that :func:`save` would not have written."""
    if about["format"] != FORMAT:
        raise CheckpointError(f"it has format {about['format']!r:.50}, this version reads {FORMAT}")

    def sums(value):
        return type(value) is dict and {*value} in (set(), SUMS) and numbers(value.values(), 0, 1e100)

    check_fields(about, {"images": whole, "crc32": whole, "optimizer_steps": whole, "sums": sums})
    count = sum(values.size for name, values in arrays.items() if name.startswith("adam_m/"))
    check_arrays(arrays, (np.float32, np.float64), count, Config.from_dict(about["config"]).num_parameters)
    for name, values in arrays.items():
        if name.startswith("adam_v/") and values.min() < 0:
            raise CheckpointError(f"{name} must hold averages of squares, not {values.min()}")


# ------------------------------------------------------------------------------------------------------------- loading


def is_exported(about):
    """Whether a file holds only an encoder (training/exported.py)."""
    return about.get("kind") == exported.KIND


def load(path, device="cpu"):
    """The model of a checkpoint file, a run folder or an exported encoder, ready for ``encode``.

    An IJEPA, or an ImageEncoder if the file has no more; with its channel statistics.
    """
    return loaded(path, device)[1]


def loaded(path, device="cpu"):
    """(what the file says about itself, its model), of what :func:`load` takes."""
    about, arrays = read(path)
    config = Config.from_dict(about["config"])
    if is_exported(about):
        with _refusals(file_of(path)):
            return about, exported.model_of(about, arrays, config, device)
    model = IJEPA(config, device=device)
    _fill(model, arrays, path)
    model.mean, model.std = tuple(about["mean"]), tuple(about["std"])
    return about, model


def restore(path, model, optimizer, data):
    """Fill a run's model and optimizer from its checkpoint; return its Progress.

    Raises CheckpointError if the checkpoint has other settings than the model's, or other ``data`` (see :func:`save`):
    that would be another run. A setting that is newer than the checkpoint has its default there.
    """
    about, arrays = read(path)
    if is_exported(about):
        raise CheckpointError(f"{path} is an exported encoder: a run can't go on without the predictor and the moments")
    here = {**model.config.to_dict(), **data}
    there = {**Config.from_dict(about["config"]).to_dict(), **{name: about[name] for name in data}}
    for name in here:
        if there[name] != here[name]:
            then, now = (textwrap.shorten(str(values[name]), 100) for values in (there, here))
            raise CheckpointError(f"{file_of(path)} was written with {name} {then}, not {now}")
    for mine, moment in zip((optimizer.m, optimizer.v), _fill(model, arrays, path)):
        for name, where in model.flat.slices.items():
            mine[where] = to_device(moment[name].ravel(), model.device)
    optimizer.steps = about["optimizer_steps"]
    return Progress(about["step"], about["sums"])


def _fill(model, arrays, path):
    """Copy a checkpoint's weights into the model after checking all names and shapes; return Adam's (m, v)."""
    prefixes = "model/", "adam_m/", "adam_v/"
    state, m, v = ({n.removeprefix(p): a for n, a in arrays.items() if n.startswith(p)} for p in prefixes)
    with _refusals(file_of(path)):
        if len(state) + len(m) + len(v) < len(arrays):
            raise CheckpointError("it has unknown arrays")
        check_state(m, model.flat.parameters)
        check_state(v, model.flat.parameters)
        model.load_state_dict(state)
    return m, v
