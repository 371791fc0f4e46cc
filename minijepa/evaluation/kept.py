"""Results kept for later: the baselines' rows of a probe, and the classifier of a checkpoint.

Each is kept under the SHA-256 of everything that it depends on: the images and labels, the network's weights and
settings, the device, NumPy's version, and the program's own source. So no stale result is used, and what can't be read
is computed again.
"""

import contextlib
import hashlib
import json

import numpy as np

from minijepa.backend import to_numpy
from minijepa.errors import CheckpointError
from minijepa.files import open_plain, read_json, replaced
from minijepa.models import Classifier
from minijepa.training.provenance import sources

BASELINES = "baselines.json"  # next to the run's folder: runs on the same images share it
OF_NETWORK = (  # the settings that features depend on, given the weights
    "image_size patch_size encoder_embed_dim encoder_depth encoder_num_heads mlp_ratio layer_norm_eps".split()
)


def _sha256(*parts):
    """Of bytes and arrays, each with its length or shape, so that none runs into the next."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str} {part.shape}".encode())
            part = np.ascontiguousarray(part)
        else:
            digest.update(f"{len(part)} ".encode())
        digest.update(part)
    return digest.hexdigest()


def key_of(probed, name, model=None):
    """The SHA-256 of what the figure or classifier ``name`` depends on; ``model``: if it depends on features."""
    facts = {"name": name, "classes": probed.classes, "sources": sources(), "numpy": np.__version__}
    arrays = []
    if model is not None:
        facts |= {field: getattr(model.config, field) for field in OF_NETWORK} | {"blocks": probed.blocks}
        facts |= {"mean": list(model.mean), "std": list(model.std), "device": model.device}
        arrays = [to_numpy(p.data) for _, p in model.network(probed.encoder).named_parameters()]
    images = probed.train, probed.train_y, probed.test, probed.test_y
    return _sha256(json.dumps(facts, sort_keys=True).encode(), *arrays, *images)


# ------------------------------------------------------------------------------------------------------------ baselines


def baselines_file(probed):
    """baselines.json next to the run's folder, or next to a file outside of one."""
    folder = probed.folder.resolve()
    return (folder.parent if (folder / "config.json").exists() else folder) / BASELINES


def read_baselines(probed):
    """{key: row} of the rows kept by this very program."""
    with contextlib.suppress(TypeError, KeyError):
        rows = read_json(baselines_file(probed))
        return {key: row for key, row in rows.items() if row["sources"] == sources() and 0 <= row["knn"] <= 1}
    return {}


def keep_baseline(probed, key, name, summary):
    """Add a row; if it can't be written, it is computed again next time."""
    row = {"row": name, "sources": sources()} | summary
    with contextlib.suppress(CheckpointError), replaced(baselines_file(probed), "w") as file:
        file.write(json.dumps(read_baselines(probed) | {key: row}, indent=1) + "\n")


# ---------------------------------------------------------------------------------------------------------- classifiers


def classifier_file(probed):
    return probed.folder / f"classifier{probed.suffix}.npz"


def keep_classifier(probed, classifier):
    """Write classifier.npz next to the checkpoint."""
    about = {"key": key_of(probed, "classifier", probed.model), "classes": list(classifier.classes)}
    with replaced(classifier_file(probed)) as file:
        np.savez(file, about=np.array(json.dumps(about)), weight=classifier.weight, bias=classifier.bias)


def kept_classifier(probed):
    """The Classifier in classifier.npz, if it belongs to this encoder and these images; otherwise None."""
    try:
        with open_plain(classifier_file(probed), "rb") as raw, np.load(raw, allow_pickle=False) as file:
            about, weight, bias = json.loads(file["about"].item()), file["weight"], file["bias"]
        same = about["key"] == key_of(probed, "classifier", probed.model)
        return Classifier(weight, bias, tuple(about["classes"])) if same else None
    except Exception:  # zipfile, NumPy and json raise many kinds for damaged bytes
        return None
