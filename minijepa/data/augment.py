"""Random flips and shifts, drawn on the host and applied to a whole batch by one gather; and random resized crops.

A shift is the usual "pad by 4, crop at random". The border mirrors the image (…2 1 | 0 1 2…): a constant one would give
whole patches that the network can predict without looking, and the mirror needs neither a fill colour nor a padded
copy, since it is only another index.
"""

import numpy as np

from minijepa.backend import matmul, xp_of
from minijepa.errors import DtypeError


def augment(images, rng, flip, shift):
    """``images`` (B, C, H, W) of either array library, half of them mirrored if ``flip``, moved by up to ±``shift``.

    y[b, c, i, j] = x[b, c, row(i + down_b), col(j + right_b)], where ``row`` and ``col`` mirror an index outside the
    image, and a flipped image has W − 1 − col(j) for col(j). down and right are uniform over −shift ... shift.
    """
    batch_size, channels, height, width = images.shape
    flipped = rng.random(batch_size) < 0.5 if flip else np.zeros(batch_size, bool)
    top, left = (rng.integers(2 * shift + 1, size=(batch_size, 1)) for _ in range(2))  # down and right, plus shift
    padded_rows, padded_cols = (np.pad(np.arange(size), shift, mode="reflect") for size in (height, width))
    rows, cols = padded_rows[top + np.arange(height)], padded_cols[left + np.arange(width)]
    cols = np.where(flipped[:, None], width - 1 - cols, cols)

    # Only the short index vectors are copied to a GPU; the index of every pixel is computed where the images are.
    xp = xp_of(images)
    planes = xp.arange(batch_size * channels).reshape(batch_size, channels, 1, 1) * (height * width)
    pixels = xp.asarray(rows * width)[:, None, :, None] + xp.asarray(cols)[:, None, None, :]
    return images.reshape(-1).take(planes + pixels)


def draw_windows(batch_size, rng, scale):
    """Windows (B, 4) = top, left, height, width as fractions of the image, for :func:`resized_crop`.

    Area uniform in ``scale``, ln(width/height) uniform between ln(3/4) and ln(4/3), then sides clipped to 1, place
    uniform over all that fit. (torchvision's RandomResizedCrop draws again what does not fit, in whole pixels.)
    """
    area = rng.uniform(*scale, batch_size)
    ratio = np.exp(rng.uniform(*np.log([3 / 4, 4 / 3]), batch_size))
    size = np.minimum(np.sqrt([area / ratio, area * ratio]), 1)
    return np.concatenate([rng.random((2, batch_size)) * (1 - size), size]).T


def resized_crop(images, windows):
    """The window of each float image (B, C, H, W), enlarged to the size of the whole image.

    Output row i is at x = H (top + (i + ½) height / H) − ½, between two input rows, and takes (1 − f) of the first and
    f of the second, f = x − ⌊x⌋; columns likewise. So rows and columns are each mixed by a matrix with two numbers per
    row, and y = R x Cᵀ. The result is the same whether ``images`` are normalised before or after.
    """
    xp = xp_of(images)
    if images.dtype.kind != "f":
        raise DtypeError(f"resized_crop mixes pixels and takes floats, was given {images.dtype}: normalise() them")
    _, _, height, width = images.shape
    windows = xp.asarray(windows)  # all that is copied to a GPU
    rows = _mixing(windows[:, 0], windows[:, 2], height).astype(images.dtype)
    cols = _mixing(windows[:, 1], windows[:, 3], width).astype(images.dtype)
    return matmul(matmul(rows[:, None], images), cols[:, None].swapaxes(-1, -2))


def _mixing(start, length, size):
    """The matrices (B, size, size) of bilinear interpolation along one axis."""
    xp = xp_of(start)
    pixels = xp.arange(size)
    places = size * (start[:, None] + (pixels + 0.5) / size * length[:, None]) - 0.5
    places = xp.clip(places, 0, size - 1)[..., None]
    return xp.maximum(0, 1 - xp.abs(places - pixels))
