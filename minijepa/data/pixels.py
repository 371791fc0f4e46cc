"""From the pixels of a file to the numbers that a network takes."""

import numpy as np

from minijepa.backend import xp_of
from minijepa.errors import DtypeError, ShapeError

MEAN = (0.4914, 0.4822, 0.4465)  # of each channel over CIFAR-10's training images, pixels in [0, 1]
STD = (0.2470, 0.2435, 0.2616)


def normalise(images, mean=MEAN, std=STD):
    """What models take: y = (x / 255 − mean) / std for each channel.

    ``images``: uint8 (..., C, H, W) of either array library; ``mean``, ``std``: C numbers, for pixels in [0, 1].
    Returns float32 of the same shape, computed as y = x · 1/(255 std) − mean/std.
    """
    if images.dtype != np.uint8:
        raise DtypeError(f"normalise takes uint8 images (0 to 255), got {images.dtype}: is it normalised already?")
    if images.ndim < 3 or not images.shape[-3] == len(mean) == len(std):
        raise ShapeError(
            f"normalise takes images (..., {len(mean)}, height, width), a mean and a deviation for each channel; "
            f"got images {images.shape}, {len(mean)} means and {len(std)} deviations"
        )
    xp = xp_of(images)
    y = xp.empty(images.shape, np.float32)
    for c in range(len(mean)):  # Python floats keep float32 and need no transfer to a GPU
        channel = y[..., c, :, :]
        xp.multiply(images[..., c, :, :], 1.0 / (255.0 * float(std[c])), out=channel, dtype=np.float32)
        channel -= float(mean[c]) / float(std[c])
    return y
