"""A frozen encoder's features, per image and per patch."""

import numpy as np
from tqdm import tqdm

from minijepa.models.chunks import map_images

AT_ONCE = 2048  # images between two updates of the progress bar: whole chunks on every device


def progress(total, told, unit):
    """A progress bar that disappears at the end, and is shown only in a terminal."""
    return tqdm(total=total, desc=told, unit=unit, disable=None, leave=False, dynamic_ncols=True)


def extract_features(model, images, encoder="target", threads=None, told=None, blocks=1):
    """Patch features averaged over each image: uint8 images (N, 3, S, S) -> float32 (N, D) on the host.

    ``encoder``: "target" (what the specification evaluates) or "context". ``told``: what a progress bar calls it.
    ``blocks``: after how many of the last blocks, side by side.
    """
    if told is None:
        return model.features(images, encoder, threads, blocks)
    features = []
    with progress(len(images), told, "image") as bar:
        for start in range(0, len(images), AT_ONCE):
            features.append(model.features(images[start : start + AT_ONCE], encoder, threads, blocks))
            bar.update(len(features[-1]))
    return np.concatenate(features)


def extract_patches(model, images, encoder="target", threads=None):
    """Features of every patch: uint8 images (B, 3, S, S) -> float32 (B, N, D) on the host."""

    def patches(chunk):
        return model.encode(model.normalise(chunk), encoder).data

    return map_images(model, images, patches, (model.config.num_patches, model.config.encoder_embed_dim), threads)
