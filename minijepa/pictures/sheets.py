"""Sheets of images: neighbours, principal components, predictions, and the user's own pictures."""

import numpy as np

from minijepa.pictures.canvas import (
    BLUE,
    GREY,
    HIDDEN,
    INK,
    LABEL,
    LINE,
    ORANGE,
    Sheet,
    enlarged,
    hidden_patches,
    pixels_of,
    screen_scale,
    shortened,
    text_width,
)
from minijepa.pictures.masks import GAP, HEADING, SCALE, WIDE_GAP

UNDER = 24  # height of a line of text under an image


def neighbours_picture(images, labels, bank, bank_labels, nearest, similarity, classes, path=None, caption="", note=""):
    """A row for each query image: itself, and its nearest images in the bank, those of its class framed in blue.

    images: uint8 (Q, 3, S, S), labels (Q,); bank and bank_labels alike; nearest, similarity: (Q, k), best first.
    """
    scale = screen_scale(images)
    size, k = images.shape[-1] * scale, nearest.shape[1]
    right = int((bank_labels[nearest] == labels[:, None]).sum())
    sheet = Sheet(
        size + WIDE_GAP + k * (size + GAP) - GAP,
        HEADING + len(images) * (size + UNDER + GAP) - GAP,
        f"Nearest training images: {right} of {nearest.size} are of the query's class",
        caption,
        note,
    )
    first = sheet.left + size + WIDE_GAP
    sheet.text((sheet.left + size // 2, sheet.top + HEADING - 12), "query", 16, INK, "ms")
    sheet.text((first, sheet.top + HEADING - 12), "nearest first; framed in blue if of the query's class", 16, INK)
    for row in range(len(images)):
        top = sheet.top + HEADING + row * (size + UNDER + GAP)
        sheet.pixels(sheet.left, top, enlarged(images[row], scale))
        sheet.text((sheet.left, top + size + 17), classes[labels[row]])
        for column, (index, cosine) in enumerate(zip(nearest[row], similarity[row])):
            _neighbour(sheet, first + column * (size + GAP), top, bank[index], scale, cosine,
                       classes[bank_labels[index]], bank_labels[index] == labels[row])  # fmt: skip
    return sheet.saved(path)


def _neighbour(sheet, left, top, image, scale, cosine, name, framed):
    size = image.shape[-1] * scale
    if framed:
        sheet.frame(left, top, size, BLUE, 4)
    sheet.pixels(left, top, enlarged(image, scale))
    number = f"{cosine:.2f}"
    sheet.text((left, top + size + 17), name, LABEL, BLUE if framed else GREY)
    if text_width(name, LABEL) + 6 + text_width(number, LABEL - 2) <= size:
        sheet.text((left + size, top + size + 17), number, LABEL - 2, GREY, "rs")


def pca_picture(images, maps, path=None, caption="", note=""):
    """For each image: itself, and its patches in the colours of each of ``maps`` {heading: uint8 (B, 3, S, S)}."""
    scale = screen_scale(images)
    size = images.shape[-1] * scale
    across = min(3, len(images))
    group = (len(maps) + 1) * (size + 6) - 6
    sheet = Sheet(
        across * (group + WIDE_GAP) - WIDE_GAP,
        HEADING + -(-len(images) // across) * (size + GAP) - GAP,
        "Patch features: three principal components as colours",
        caption,
        note,
    )
    for i in range(len(images)):
        left = sheet.left + i % across * (group + WIDE_GAP)
        top = sheet.top + HEADING + i // across * (size + GAP)
        for j, (heading, shown) in enumerate({"image": images, **maps}.items()):
            if i < across:
                sheet.text((left + j * (size + 6) + size // 2, sheet.top + HEADING - 12), heading, LABEL + 1, INK, "ms")
            sheet.pixels(left + j * (size + 6), top, enlarged(shown[i], scale))
    return sheet.saved(path)


def predictions_picture(images, masks, fillings, patch_size, path=None, caption="", note=""):
    """A row for each image: itself, its context, and the context with the hidden block filled in several ways.

    images: uint8 (B, 3, S, S); masks: of these, with one target block each; fillings: {heading: (images (B, 3, S, S) of
    which the target block is shown, a number for each or None)}.
    """
    grid = images.shape[2] // patch_size, images.shape[3] // patch_size
    size, cell = images.shape[-1] * SCALE, patch_size * SCALE
    columns = len(fillings) + 2
    sheet = Sheet(
        2 * (size + WIDE_GAP) + (columns - 2) * (size + GAP) - GAP,
        HEADING + 20 + len(images) * (size + UNDER + 4) - 4,
        "What the predictor expects where it cannot see",
        caption,
        note,
    )
    first = sheet.left + 2 * (size + WIDE_GAP)
    lefts = [sheet.left, sheet.left + size + WIDE_GAP, *(first + i * (size + GAP) for i in range(columns - 2))]
    for left, heading in zip(lefts, ["image", "context", *fillings]):
        for line, text in enumerate(reversed(heading.split("\n"))):
            sheet.text((left + size // 2, sheet.top + HEADING + 8 - 18 * line), text, 15, INK, "ms")
    for row in range(len(images)):
        top = sheet.top + HEADING + 20 + row * (size + UNDER + 4)
        seen, block = pixels_of(masks.context[row], grid, cell), pixels_of(masks.targets[row][0], grid, cell)
        context = np.where(seen[..., None], enlarged(images[row], SCALE), hidden_patches(grid, cell))
        sheet.pixels(lefts[0], top, enlarged(images[row], SCALE))
        sheet.pixels(lefts[1], top, context)
        sheet.outline(lefts[1], top, block, ORANGE)
        for left, (shown, numbers) in zip(lefts[2:], fillings.values()):
            sheet.pixels(left, top, np.where(block[..., None], enlarged(shown[row], SCALE), context))
            sheet.outline(left, top, block, ORANGE)
            if numbers is not None:
                sheet.text((left + size // 2, top + size + 17), f"error {numbers[row]:.2f}", LABEL, GREY, "ms")
    return sheet.saved(path)


BARS = 220  # width of the column of class probabilities


def own_images_picture(names, images, probabilities, colours, classes, neighbours=None,
                       path=None, caption="", note=""):  # fmt: skip
    """A row for each of the user's pictures: as the network sees it, its patches' colours, classes, neighbours.

    images, colours: uint8 (Q, 3, S, S); probabilities (Q, C); ``neighbours``: (bank of images, their labels, nearest
    (Q, k) among them, similarity (Q, k)), None to leave them out.
    """
    scale = screen_scale(images)
    size = images.shape[-1] * scale
    width = 2 * (size + GAP) + BARS + WIDE_GAP - GAP
    headings = {"as seen": 0, "patches": size + GAP, "class (linear probe)": 2 * size + GAP + WIDE_GAP}
    if neighbours:
        bank, bank_labels, nearest, similarity = neighbours
        headings["nearest training images"] = width + WIDE_GAP
        width += WIDE_GAP + nearest.shape[1] * (size + GAP) - GAP
    sheet = Sheet(width, HEADING + len(images) * (size + 2 * UNDER + GAP) - GAP, "Your own pictures", caption, note)
    for text, x in headings.items():
        sheet.text((sheet.left + x, sheet.top + HEADING - 12), text, 15)
    bars = sheet.left + headings["class (linear probe)"]
    for row in range(len(images)):
        top = sheet.top + HEADING + row * (size + 2 * UNDER + GAP) + UNDER
        sheet.text((sheet.left, top - 7), shortened(names[row], sheet.right - sheet.left, LABEL))
        sheet.frame(sheet.left, top, size, LINE, 1)  # a white picture has an edge too
        sheet.pixels(sheet.left, top, enlarged(images[row], scale))
        sheet.pixels(sheet.left + size + GAP, top, enlarged(colours[row], scale))
        _bars(sheet, bars, top, probabilities[row], classes)
        if neighbours:
            first, best = bars + BARS + WIDE_GAP, int(np.argmax(probabilities[row]))
            for column, (index, cosine) in enumerate(zip(nearest[row], similarity[row])):
                _neighbour(sheet, first + column * (size + GAP), top, bank[index], scale, cosine,
                           classes[bank_labels[index]], bank_labels[index] == best)  # fmt: skip
    return sheet.saved(path)


def _bars(sheet, left, top, probabilities, classes):
    """The four most likely classes, a bar each."""
    for i, c in enumerate(np.argsort(-probabilities, kind="stable")[:4]):
        y, colour = top + i * 24, BLUE if i == 0 else GREY
        sheet.text((left + BARS - 132, y + 12), classes[c], LABEL, colour, "rm")
        sheet.draw.rectangle((left + BARS - 124, y + 4, left + BARS - 45, y + 20), fill=HIDDEN)
        length = round(79 * float(probabilities[c]))
        sheet.draw.rectangle((left + BARS - 124, y + 4, left + BARS - 124 + length, y + 20), fill=colour)
        sheet.text((left + BARS, y + 12), f"{100 * probabilities[c]:.0f}%", LABEL, colour, "rm")
