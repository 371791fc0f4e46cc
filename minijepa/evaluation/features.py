"""Image features of a frozen encoder, a chunk at a time on worker threads."""

import reprlib

import numpy as np

from minijepa.backend import to_device, to_numpy
from minijepa.backend.threads import available_cores, on_threads
from minijepa.errors import ConfigError

MOST_THREADS = 1024  # systems refuse to start tens of thousands
CHUNK = {"cpu": 16, "cuda": 1024}  # images whose activations fit the cache, or the card


def worker_threads(requested=None):
    """How many threads to use: ``requested``, which must be at least 1, or one for each core if None."""
    if requested is not None and not 1 <= requested <= MOST_THREADS:
        raise ConfigError(f"--threads must be at least 1 and at most {MOST_THREADS}, got {reprlib.repr(requested)}")
    return available_cores() if requested is None else requested


def map_images(model, images, function, shape, threads=None):
    """function(chunk) for chunks of images (N, 3, S, S), on the model's device -> float32 (N, *shape), on the host."""
    size = CHUNK[model.device]
    result = np.empty((len(images), *shape), np.float32)

    def run(start):
        with np.errstate(all="ignore"):  # whoever asked sees what is not finite
            result[start : start + size] = to_numpy(function(to_device(images[start : start + size], model.device)))

    starts = range(0, len(images), size)
    if model.device == "cuda":  # in this thread, whose stream has made the weights
        list(map(run, starts))
    else:
        on_threads(run, starts, worker_threads(threads))
    return result


def extract_features(model, images, encoder="target", threads=None):
    """Patch features averaged over each image: uint8 images (N, 3, S, S) -> float32 (N, D) on the host.

    ``encoder``: "target" (what the specification evaluates) or "context".
    """

    def pooled(chunk):
        return model.encode(model.normalise(chunk), encoder).data.mean(axis=1)

    return map_images(model, images, pooled, (model.config.encoder_embed_dim,), threads)


def extract_patches(model, images, encoder="target", threads=None):
    """Features of every patch: uint8 images (B, 3, S, S) -> float32 (B, N, D) on the host."""

    def patches(chunk):
        return model.encode(model.normalise(chunk), encoder).data

    return map_images(model, images, patches, (model.config.num_patches, model.config.encoder_embed_dim), threads)
