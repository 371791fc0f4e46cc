"""Patch features made visible: principal components, and images made of nearest patches."""

import numpy as np

from minijepa.backend import to_device, to_numpy
from minijepa.data import Masks
from minijepa.evaluation.checks import map_rows
from minijepa.models.chunks import map_images
from minijepa.models.vit import patchify

# ------------------------------------------------------------------------------------------------- principal components


def principal_components(x):
    """The three directions in which rows x (n, D) vary most -> their mean (D,), directions (3, D), largest first.

    They are the eigenvectors of the covariance matrix with the largest eigenvalues, orthonormal, and zeros beyond the
    D-th. An eigenvector's sign is arbitrary: here its largest entry is positive, so that the same rows always get the
    same colours.
    """
    mean = x.mean(axis=0)
    _, vectors = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    axes = vectors.T[::-1][:3]
    axes = np.pad(axes, ((0, 3 - len(axes)), (0, 0)))
    return mean, axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))


def component_places(fitted, shown):
    """Three numbers from 0 to 1 for rows ``shown``, (..., D) -> (..., 3), by the principal components of ``fitted``.

    2% of the fitted rows are below 0 and 2% above 1, so that a few outliers don't take all the contrast.
    """
    fitted = np.asarray(fitted, np.float64)
    mean, axes = principal_components(fitted)
    low, high = np.percentile((fitted - mean) @ axes.T, [2, 98], axis=0)
    spread = high - low
    place = ((shown - mean) @ axes.T - low) / np.where(spread > 0, spread, np.inf)
    return np.clip(np.where(spread > 0, place, 0.5), 0, 1)


def colours_of(place):
    """Three numbers from 0 to 1 as an sRGB colour: (..., 3) -> uint8 (..., 3).

    The first is lightness, the second runs from blue to yellow, the third from green to red. So nearly every reader can
    see the most important ones, and a reader who can't tell green from red loses only the third. The axes are those of
    Oklab, in which equal steps look about equal (Ottosson, "A perceptual color space for image processing", 2020).
    """
    lightness, blue_yellow, green_red = np.moveaxis(place, -1, 0)
    a, b = 0.3 * (green_red - 0.5), 0.36 * (blue_yellow - 0.5)
    lightness = 0.3 + 0.62 * lightness
    cones = [lightness + 0.3963377774 * a + 0.2158037573 * b, lightness - 0.1055613458 * a - 0.0638541728 * b,
             lightness - 0.0894841775 * a - 1.2914855480 * b]  # fmt: skip
    linear = np.stack(cones, axis=-1) ** 3 @ np.array(
        [[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
         [-0.0041960863, -0.7034186147, 1.7076147010]]
    ).T  # fmt: skip
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * srgb).astype(np.uint8)


def patch_maps(values, size):
    """Numbers of patches as images: (B, N, C) -> (B, C, size, size), each patch a square of one colour."""
    b, n, c = values.shape
    side = round(n**0.5)
    maps = values.reshape(b, side, side, c).transpose(0, 3, 1, 2)
    return maps.repeat(size // side, axis=2).repeat(size // side, axis=3)


# ------------------------------------------------------------------------------------------- images of nearest patches


def extract_patches(model, images, encoder="target", threads=None):
    """Features of every patch: uint8 images (B, 3, S, S) -> float32 (B, N, D) on the host."""
    shape = model.config.num_patches, model.config.encoder_embed_dim
    return map_images(model, images, lambda chunk: model.encode(model.normalise(chunk), encoder).data, shape, threads)


def target_patches(model, images, threads=None):
    """The predictor's targets for every patch, as in training: uint8 images (B, 3, S, S) -> (B, N, D)."""
    n = model.config.num_patches

    def targets(chunk):
        whole = Masks.from_lists([[0]] * len(chunk), [[range(n)]] * len(chunk))
        return model.targets(model.normalise(chunk), whole).data.reshape(len(chunk), n, -1)

    return map_images(model, images, targets, (n, model.config.encoder_embed_dim), threads)


def closest_rows(bank, queries):
    """The row of bank (n, D) with the smallest Euclidean distance to each query (q, D): (q,)."""
    largest = np.abs(bank).max() or 1  # so that no square over- or underflows
    bank, queries = bank / largest, queries / largest
    squares = np.einsum("nd,nd->n", bank, bank)
    # |b − q|² = |b|² − 2 b·q + |q|², where |q|² is the same for every b
    return np.concatenate(list(map_rows(lambda x: (squares - 2 * (x @ bank.T)).argmin(axis=1), queries, block_rows=64)))


def central_blocks(masks, grid):
    """The target block closest to each image's middle: Masks with one block each."""
    middle = (np.array(grid) - 1) / 2

    def off_centre(block):
        return np.abs(np.stack(np.unravel_index(block, grid)).mean(axis=1) - middle).sum()

    return Masks.from_lists(masks.context, [[min(blocks, key=off_centre)] for blocks in masks.targets])


def predicted_blocks(model, images, masks, bank_images, threads=None):
    """Target blocks (``masks``: one of each image) made of other images' patches: {name: (images, errors)}.

    Each target patch is replaced by the patch of the bank whose target features are closest to its own ("truth"), to
    the predicted ones ("prediction"), or to the bank's mean at its position ("position"): the best guess of a predictor
    that knows where a patch is but not what surrounds it. The images, uint8 (B, 3, S, S), are changed only in the
    block. Errors (B,): mean squares per dimension.
    """
    bank = target_patches(model, bank_images, threads)
    batch = model.normalise(to_device(images, model.device))
    target = to_numpy(model.targets(batch, masks).data)
    prediction = to_numpy(model.predictions(batch, masks).data)
    position = bank.mean(axis=0)[masks.target_index]
    side, size = model.config.grid[0], model.config.patch_size
    image = np.repeat(np.arange(len(images)), masks.target_lengths[:, 0])
    row, column = np.divmod(masks.target_index, side)
    pixels, known = patchify(bank_images, size).reshape(-1, 3, size, size), bank.reshape(-1, bank.shape[-1])

    def filled(features):
        result = images.copy()
        cells = result.reshape(len(images), 3, side, size, side, size)  # a view
        cells[image, :, row, :, column] = pixels[closest_rows(known, features)]
        return result

    def error(features):
        return np.bincount(image, ((features - target) ** 2).mean(axis=1)) / masks.target_lengths[:, 0]

    features = {"truth": target, "prediction": prediction, "position": position}
    return {name: (filled(rows), error(rows)) for name, rows in features.items()}
