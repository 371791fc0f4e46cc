"""An exported encoder: one file with only the target encoder, with timm's names, and what its features need.

An .npz, readable without pickle, of the encoder's parameters (``patch_embed.proj.weight``, ``blocks.0.norm1.weight``
...) and, if a classifier was fitted to its features, ``head.weight`` and ``head.bias``, as in timm's VisionTransformer.
``about`` is JSON: settings, channel statistics, names of classes, and where the weights came from.
"""

import json
from pathlib import Path

import numpy as np

from minijepa.config import Config
from minijepa.errors import CheckpointError
from minijepa.files import replaced
from minijepa.models import Classifier, ImageEncoder
from minijepa.training.schema import check_arrays, check_fields

KIND, FORMAT = "encoder", 1
SUFFIXES = (".npz", ".safetensors")
HEAD = ("head.weight", "head.bias")


def save(path, model, dataset, step, provenance="", dtype=np.float32):
    """Write ``model``'s target encoder, and its classifier if it has one, as .npz or .safetensors (by the suffix).

    ``dataset``: the name of its training set; ``step``: steps trained; ``provenance``: a line for readers;
    ``dtype``: float32 or float16, in which the arrays are stored. Raises CheckpointError in one line.
    """
    arrays = model.target_encoder.state_dict()
    about = {
        "kind": KIND, "format": FORMAT, "config": model.config.to_dict(), "mean": [float(x) for x in model.mean],
        "std": [float(x) for x in model.std], "dataset": dataset, "step": step, "provenance": provenance,
    }  # fmt: skip
    if model.classifier:
        about["classes"] = list(model.classifier.classes)
        arrays |= zip(HEAD, (model.classifier.weight, model.classifier.bias))
    with np.errstate(over="ignore"):
        arrays = {name: np.ascontiguousarray(values, dtype) for name, values in arrays.items()}
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise CheckpointError(f"{name} holds numbers too large for {np.dtype(dtype)}: export float32")
    with replaced(path) as file:
        if Path(path).suffix == ".safetensors":
            import safetensors.numpy

            file.write(safetensors.numpy.save(arrays, {"about": json.dumps(about)}))
        else:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)


def check(about, arrays):
    """Raise CheckpointError for what :func:`save` would not write; the model checks names and shapes."""
    if about["format"] != FORMAT:
        raise CheckpointError(f"an encoder of format {about['format']!r:.50}, this version reads {FORMAT}")

    def is_word(value):
        return type(value) is str

    def words(value):
        return type(value) is list and all(map(is_word, value))

    check_fields(about, dict(kind=is_word, provenance=is_word) | ({"classes": words} if "classes" in about else {}))
    count = sum(values.size for name, values in arrays.items() if name not in HEAD)
    check_arrays(arrays, (np.float32, np.float16), count, Config.from_dict(about["config"]).num_encoder_parameters)
    classes, wide = about.get("classes", []), about["config"].get("encoder_embed_dim")
    shapes = dict(zip(HEAD, ((len(classes), wide), (len(classes),)))) if classes else {}
    if {name: arrays[name].shape for name in HEAD if name in arrays} != shapes:
        raise CheckpointError(f"head.weight and head.bias must fit {len(classes)} classes and {wide} features")


def model_of(about, arrays, config, device="cpu"):
    """The ImageEncoder of a checked file. Raises CheckpointError if names or shapes don't fit ``config``."""
    model = ImageEncoder(config, device=device)
    model.target_encoder.load_state_dict({name: values for name, values in arrays.items() if name not in HEAD})
    model.mean, model.std = tuple(about["mean"]), tuple(about["std"])
    if about.get("classes"):
        weight, bias = (arrays[name].astype(np.float64) for name in HEAD)
        model.classifier = Classifier(weight, bias, tuple(about["classes"]))
    return model
