"""The network and the data set that tests share: as small as they can be."""

import numpy as np

from minijepa.data import Dataset

NETWORK = dict(
    encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=8, predictor_depth=1,
    predictor_num_heads=2,
)  # fmt: skip
DEEPER = NETWORK | dict(encoder_depth=2, predictor_depth=2)


def noise(count):
    """A data set of ``count`` training images of noise."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (count, 3, 32, 32), np.uint8), draw.integers(0, 10, count).astype(np.uint8)
    return Dataset("noise", tuple("abcdefghij"), images, labels, images[:5], labels[:5], (0.5,) * 3, (0.25,) * 3)
