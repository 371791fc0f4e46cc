"""Image features of a frozen encoder, a chunk at a time on worker threads."""

import reprlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minijepa.backend import available_cores, to_device, to_numpy
from minijepa.data import normalise
from minijepa.errors import ConfigError

MOST_THREADS = 1024  # systems refuse to start tens of thousands
CHUNK = {"cpu": 16, "cuda": 1024}  # images whose activations fit the cache, or the card


def worker_threads(requested=None):
    """How many threads to use: ``requested``, which must be at least 1, or one for each core if None."""
    if requested is not None and not 1 <= requested <= MOST_THREADS:
        raise ConfigError(f"--threads must be at least 1 and at most {MOST_THREADS}, got {reprlib.repr(requested)}")
    return available_cores() if requested is None else requested


def extract_features(model, images, encoder="target", threads=None):
    """Patch features averaged over each image: uint8 images (N, 3, S, S) -> float32 (N, D) on the host.

    ``encoder``: "target" (what the specification evaluates) or "context".
    """
    size = CHUNK[model.device]
    features = np.empty((len(images), model.config.encoder_embed_dim), np.float32)

    def run(start):
        chunk = to_device(images[start : start + size], model.device)
        with np.errstate(all="ignore"):  # whoever asked sees what is not finite
            tokens = model.encode(normalise(chunk, model.mean, model.std), encoder).data
        features[start : start + size] = to_numpy(tokens.mean(axis=1))

    with ThreadPoolExecutor(1 if model.device == "cuda" else worker_threads(threads)) as pool:
        list(pool.map(run, range(0, len(images), size)))
    return features
