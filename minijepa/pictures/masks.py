"""Which patches the context encoder sees, and which the predictor must predict."""

import numpy as np

from minijepa.backend import to_numpy
from minijepa.pictures.canvas import BLOCK_COLOURS, INK, Sheet, enlarged, hidden_patches, pixels_of

FADE = 0.8  # how far a patch outside the target block goes towards white
GAP, WIDE_GAP = 12, 26  # between target blocks; between image, context and target blocks
SCALE = 4  # screen pixels for a pixel of an image
HEADING = 28  # height of the line of headings


def masks_picture(images, masks, patch_size, path=None):
    """A row for each image: the image, its context patches, and each of its M target blocks in place.

    images: uint8 (B, 3, S, S); masks: the `Masks` of these images; patch_size: in pixels of the image. Patches outside
    the context are flat grey, because the context encoder never sees them; patches outside a target block are faded.
    Visible patches keep the image's exact colours.
    """
    images = to_numpy(images)
    grid = images.shape[2] // patch_size, images.shape[3] // patch_size
    height, width = images.shape[2] * SCALE, images.shape[3] * SCALE
    cell, m = patch_size * SCALE, masks.num_targets
    sheet = Sheet(
        2 * (width + WIDE_GAP) + m * (width + GAP) - GAP,
        HEADING + len(images) * (height + GAP) - GAP,
        "What is seen, and what is to be predicted",
        "The context encoder sees only the context: grey patches are hidden from it. The predictor is told where each "
        "target block is, and must predict the features of the target encoder there, which sees all patches.",
    )
    first = sheet.left + 2 * (width + WIDE_GAP)
    lefts = [sheet.left, sheet.left + width + WIDE_GAP, *(first + i * (width + GAP) for i in range(m))]
    headings = ["image", "context", *(f"target {i + 1}" for i in range(m))]
    colours = [INK, INK, *(BLOCK_COLOURS[i % len(BLOCK_COLOURS)] for i in range(m))]
    for left, heading, colour in zip(lefts, headings, colours):
        sheet.text((left + width // 2, sheet.top + HEADING - 12), heading, 16, colour, "ms")

    for row, (image, context, blocks) in enumerate(zip(images, masks.context, masks.targets)):
        top = sheet.top + HEADING + row * (height + GAP)
        pixels = enlarged(image, SCALE)
        faded = np.rint(FADE * 255 + (1 - FADE) * pixels).astype(np.uint8)
        sheet.pixels(lefts[0], top, pixels)
        rests = [hidden_patches(grid, cell), *[faded] * m]
        for left, patches, rest, colour in zip(lefts[1:], [context, *blocks], rests, colours[1:]):
            visible = pixels_of(patches, grid, cell)
            sheet.pixels(left, top, np.where(visible[..., None], pixels, rest))
            sheet.outline(left, top, visible, colour)
    return sheet.saved(path)
