"""Pictures of masks, of a classifier's confusions and of training curves, drawn with Pillow.

Each function returns a `PIL.Image.Image`, and writes it as a PNG if it is given a path.
"""

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from minijepa.backend import to_numpy
from minijepa.errors import DtypeError, ShapeError

WHITE = (255, 255, 255)
INK = (31, 41, 55)
GREY = (107, 114, 128)
LINE = (226, 229, 234)
HIDDEN = (229, 231, 235)  # a patch that the context encoder does not see
BLUE = (37, 99, 235)
BLOCK_COLOURS = [(220, 68, 55), (37, 99, 235), (22, 140, 83), (217, 119, 6)]  # of target blocks, in turn
FADE = 0.8  # how far a patch outside the target block goes towards white


def masks_picture(images, masks, patch_size, path=None, scale=4):
    """A row for each image: the image, the patches of its context, and each of its M target blocks in its place.

    images: uint8 (B, 3, S, S); masks: the `Masks` of these B images; patch_size: in pixels of the image; scale: screen
    pixels per image pixel. Patches outside the context are flat grey, for the context encoder never sees them; patches
    outside a target block are faded. Visible patches keep the image's exact colours.

    Raises DtypeError and ShapeError for images of another kind, and for masks of another number or size of images.
    """
    images = to_numpy(images)
    if images.dtype != np.uint8:
        raise DtypeError(f"masks_picture takes uint8 images, got {images.dtype}: draw them before they are normalised")
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % patch_size or images.shape[3] % patch_size:
        raise ShapeError(
            f"masks_picture takes images (B, 3, height, width) of whole patches, {patch_size} pixels wide and high, "
            f"got {images.shape}"
        )
    if len(images) != len(masks):
        raise ShapeError(f"masks_picture got {len(images)} images, but masks of {len(masks)}")
    grid = images.shape[2] // patch_size, images.shape[3] // patch_size
    largest = max(masks.context_index.max(), masks.target_index.max())
    if largest >= grid[0] * grid[1]:
        raise ShapeError(f"masks_picture: the masks name patch {largest}, but images have {grid[0]}x{grid[1]} patches")

    height, width = images.shape[2] * scale, images.shape[3] * scale
    cell = patch_size * scale
    margin, gap, wide_gap, header = 28, 12, 26, 62
    # Three groups, set apart: the image, its context, its target blocks.
    lefts = [margin, margin + width + wide_gap]
    lefts += [lefts[1] + width + wide_gap + m * (width + gap) for m in range(masks.num_targets)]
    tops = [header + b * (height + gap) for b in range(len(images))]
    sheet = Image.new("RGB", (lefts[-1] + width + margin, tops[-1] + height + margin), WHITE)
    draw = ImageDraw.Draw(sheet)

    headings = ["image", "context", *(f"target {m + 1}" for m in range(masks.num_targets))]
    colours = [INK, INK, *(BLOCK_COLOURS[m % len(BLOCK_COLOURS)] for m in range(masks.num_targets))]
    for left, heading, colour in zip(lefts, headings, colours):
        draw.text((left + width // 2, header - 14), heading, fill=colour, font=_font(17), anchor="ms")

    for image, context, blocks, top in zip(images.transpose(0, 2, 3, 1), masks.context, masks.targets, tops):
        pixels = image.repeat(scale, axis=0).repeat(scale, axis=1)
        faded = np.rint(FADE * 255 + (1 - FADE) * pixels).astype(np.uint8)
        sheet.paste(Image.fromarray(pixels), (lefts[0], top))
        rests = [_tiles(grid, cell), *[faded] * masks.num_targets]
        for left, patches, rest, colour in zip(lefts[1:], [context, *blocks], rests, colours[1:]):
            visible = _pixels_of(patches, grid, cell)
            sheet.paste(Image.fromarray(np.where(visible[..., None], pixels, rest)), (left, top))
            _outline(sheet, left, top, visible, colour)
    return _saved(sheet, path)


def _pixels_of(patches, grid, cell):
    """Which screen pixels belong to `patches`: bool (height, width)."""
    member = np.zeros(grid, bool)
    member.flat[patches] = True
    return member.repeat(cell, axis=0).repeat(cell, axis=1)


def _tiles(grid, cell):
    """A picture of nothing but hidden patches, set apart by white lines so that they can be counted."""
    tile = np.full((cell, cell, 3), HIDDEN, np.uint8)
    tile[[0, -1]] = tile[:, [0, -1]] = WHITE
    return np.tile(tile, (*grid, 1))


def _outline(sheet, left, top, visible, colour, width=2):
    """A line around the `visible` pixels of a panel, all of it outside of them."""
    inside = Image.fromarray(np.pad(visible, width).astype(np.uint8) * 255)
    ring = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(2 * width + 1)), inside)
    sheet.paste(colour, (left - width, top - width), ring)


def confusion_picture(matrix, classes, path=None):
    """A heat map of `matrix` (C, C), counts with true classes in rows and predicted ones in columns.

    Each cell shows which percentage of its row's images it holds; a class without images shows dashes. The title line
    gives the accuracy over all images.
    """
    matrix = np.asarray(matrix)
    if matrix.shape != (len(classes), len(classes)):
        raise ShapeError(f"confusion_picture needs a ({len(classes)}, {len(classes)}) matrix, got {matrix.shape}")
    totals = matrix.sum(axis=1)
    names_font = _font(15)
    longest = math.ceil(max(names_font.getlength(name) for name in classes))
    cell_width, cell_height = max(60, longest + 12), 46
    left, top, margin = longest + 66, 98, 28
    right, bottom = left + len(classes) * cell_width, top + len(classes) * cell_height
    picture = Image.new("RGB", (right + margin, bottom + margin), WHITE)
    draw = ImageDraw.Draw(picture)

    accuracy = f"accuracy {100 * np.trace(matrix) / max(1, matrix.sum()):.1f}%"
    draw.text((left, 36), accuracy, fill=INK, font=_font(19), anchor="ls")
    draw.text((right, 36), "cells: % of the true class", fill=GREY, font=_font(14), anchor="rs")
    draw.text(((left + right) // 2, 64), "predicted", fill=GREY, font=_font(16), anchor="ms")
    _vertical_text(picture, (30, (top + bottom) // 2), "true", GREY, _font(16))

    for i, name in enumerate(classes):
        x, y = left + i * cell_width + cell_width // 2, top + i * cell_height + cell_height // 2
        draw.text((x, top - 10), name, fill=INK, font=names_font, anchor="ms")
        draw.text((left - 12, y), name, fill=INK, font=names_font, anchor="rm")
    for row in range(len(classes)):
        for column in range(len(classes)):
            share = matrix[row, column] / totals[row] if totals[row] else 0.0
            x, y = left + column * cell_width, top + row * cell_height
            draw.rectangle((x, y, x + cell_width - 2, y + cell_height - 2), fill=_shade(share))
            text = f"{100 * share:.1f}" if totals[row] else "-"
            colour = WHITE if share > 0.45 else INK if share >= 0.01 else GREY
            draw.text((x + cell_width // 2, y + cell_height // 2), text, fill=colour, font=_font(15), anchor="mm")
    return _saved(picture, path)


def _shade(share):
    """From nearly white at 0 to dark blue at 1. The root lets the rare confusions be told apart."""
    pale, middle, dark = np.array([(245, 247, 250), (96, 150, 230), (23, 55, 130)], float)
    position = 2 * math.sqrt(share)
    colour = pale + (middle - pale) * position if position < 1 else middle + (dark - middle) * (position - 1)
    return tuple(int(channel) for channel in np.rint(colour))


def _vertical_text(picture, centre, text, colour, font):
    """Text that reads from bottom to top, centred."""
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    picture.paste(colour, (centre[0] - mask.width // 2, centre[1] - mask.height // 2), mask)


PANEL = (330, 190)  # a curve with its labels
PLOT = (58, 40, 316, 160)  # ... and the box inside that holds the line itself
SMOOTH = 4  # lines are drawn this many times larger, then shrunk: Pillow's own are jagged


def curves_picture(columns, x, path=None, title=None, x_name="epoch"):
    """A panel for each of `columns` ({name: numbers}) over `x`, with its range on the axes and its last value.

    Values that are not finite (a metric that is not measured every epoch) are left out; the line goes on to the next.

    Raises ShapeError for a column of another length than x.
    """
    x = np.asarray(x, float)
    across = min(3, max(1, len(columns)))
    header = 64 if title else 16
    size = across * PANEL[0] + 24, header + math.ceil(len(columns) / across) * PANEL[1] + 12
    picture = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((24, 42), title, fill=INK, font=_font(21), anchor="ls")
    for i, (name, values) in enumerate(columns.items()):
        values = np.asarray(values, float)
        if values.shape != x.shape or x.ndim != 1:
            raise ShapeError(f"curves_picture: column {name!r} has shape {values.shape}, x has {x.shape}")
        corner = 8 + i % across * PANEL[0], header + i // across * PANEL[1]
        _curve_panel(picture, corner, name, values, x, x_name)
    return _saved(picture, path)


def _curve_panel(picture, corner, name, values, x, x_name):
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = (PLOT[i] + corner[i % 2] for i in range(4))
    small = _font(12)
    draw.text((left, top - 12), name, fill=INK, font=_font(15), anchor="ls")
    for y in (top, (top + bottom) // 2, bottom):
        draw.line((left, y, right, y), fill=LINE)
    finite = np.isfinite(values)
    if not finite.any():
        draw.text(((left + right) // 2, (top + bottom) // 2 - 12), "no values", fill=GREY, font=small, anchor="mm")
        return
    first, last = float(x[0]), float(x[-1])
    x, values = x[finite], values[finite]
    draw.text((right, top - 12), _number(values[-1], 4), fill=BLUE, font=_font(15), anchor="rs")
    low, high = values.min(), values.max()
    if low == high:  # a constant runs through the middle, and its value stands there
        draw.text((left - 8, (top + bottom) // 2), _number(low, 3), fill=GREY, font=small, anchor="rm")
        low, high = low - 1, high + 1
    else:
        draw.text((left - 8, top), _number(high, 3), fill=GREY, font=small, anchor="rm")
        draw.text((left - 8, bottom), _number(low, 3), fill=GREY, font=small, anchor="rm")
    draw.text((left, bottom + 8), f"{first:g}", fill=GREY, font=small, anchor="lt")
    draw.text(((left + right) // 2, bottom + 8), x_name, fill=GREY, font=small, anchor="mt")
    draw.text((right, bottom + 8), f"{last:g}", fill=GREY, font=small, anchor="rt")

    points_x = (right - left) * (x - first) / ((last - first) or 1.0)
    points_y = (bottom - top) * (high - values) / (high - low)
    pad = 6  # room for the line's width and the last value's dot
    mask = Image.new("L", ((right - left + 2 * pad) * SMOOTH, (bottom - top + 2 * pad) * SMOOTH))
    pen = ImageDraw.Draw(mask)
    points = [((px + pad) * SMOOTH, (py + pad) * SMOOTH) for px, py in zip(points_x.tolist(), points_y.tolist())]
    pen.line(points, fill=255, width=2 * SMOOTH, joint="curve")
    pen.circle(points[-1], 3.5 * SMOOTH, fill=255)
    mask = mask.resize((mask.width // SMOOTH, mask.height // SMOOTH), Image.Resampling.BOX)
    picture.paste(BLUE, (left - pad, top - pad), mask)


def _number(value, digits):
    """Short, and without an exponent where a reader wants none: 24,310 rather than 2.431e+04."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def _font(size):
    return ImageFont.load_default(size)


def _saved(picture, path):
    if path is not None:
        picture.save(path, "PNG", optimize=True)
    return picture
