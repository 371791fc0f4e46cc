"""Many images through a network, a chunk at a time, so that memory use does not grow with their number."""

import numpy as np

from minijepa.autograd import no_tape
from minijepa.backend import plain, to_device, to_numpy
from minijepa.backend.threads import on_threads, worker_threads

CHUNK = {"cpu": 16, "cuda": 1024}  # images whose activations fit the cache, or the GPU's memory


def chunks(count, device):
    """Slices of the chunk size of the device ("cpu" or "cuda")."""
    return [slice(start, start + CHUNK[device]) for start in range(0, count, CHUNK[device])]


def map_images(model, images, function, shape, threads=None):
    """function(chunk) for chunks of images (N, 3, S, S), on the model's device -> float32 (N, *shape), on the host."""
    images, result = plain(images), np.empty((len(images), *shape), np.float32)

    def run(part):
        with no_tape(), np.errstate(all="ignore"):  # the caller sees what is not finite
            result[part] = to_numpy(function(to_device(images[part], model.device)))

    parts = chunks(len(images), model.device)
    if model.device == "cuda":  # in this thread, whose stream computed the weights
        list(map(run, parts))
    else:
        on_threads(run, parts, worker_threads(threads))
    return result
