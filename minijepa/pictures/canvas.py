"""What all pictures share: colours, text, a sheet with title and caption, enlarged pixels, outlines.

Colour-blind readers can tell the colours apart (after Okabe & Ito, "Color universal design", 2008), and no picture
relies on colour alone.
"""

import contextlib
import functools
import unicodedata

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from minijepa.files import replaced

WHITE = (255, 255, 255)
INK = (31, 41, 55)
GREY = (98, 105, 117)
LINE = (226, 229, 234)
HIDDEN = (229, 231, 235)  # a patch that is not seen
BLUE = (0, 104, 190)
ORANGE = (213, 94, 0)
BLOCK_COLOURS = [ORANGE, BLUE, (0, 158, 115), (120, 30, 110)]  # of target blocks, in turn

MARGIN = 28
TITLE, CAPTION, LABEL = 21, 14, 13  # sizes of text


class Sheet:
    """A white canvas: a title, a note to the right of it, a caption in as many lines as it needs, and the body.

    width and height are the body's; it begins at ``left`` and ``top``, and margins stand around it. A sheet is wider
    than its body if the title and the note need the room.
    """

    def __init__(self, width, height, title, caption="", note=""):
        gap = 30 if note else 0
        width = max(width, text_width(title, TITLE) + gap + text_width(note, LABEL))
        lines = wrapped(caption, width, CAPTION)
        self.left, self.top, self.right = MARGIN, 66 + 20 * len(lines), MARGIN + width
        self.image = Image.new("RGB", (width + 2 * MARGIN, self.top + height + MARGIN), WHITE)
        self.draw = ImageDraw.Draw(self.image)
        self.text((self.left, 44), title, TITLE)
        self.text((self.right, 44), note, LABEL, GREY, "rs")
        for i, line in enumerate(lines):
            self.text((self.left, 70 + 20 * i), line, CAPTION, GREY)

    def text(self, place, text, size=LABEL, colour=INK, anchor="ls"):
        """``anchor``: as in Pillow; "ls" is the left end of the baseline."""
        self.draw.text(place, text, fill=colour, font=font(size, text), anchor=anchor)

    def vertical_text(self, centre, text, size=LABEL, colour=INK):
        """Text that reads from bottom to top."""
        turned = ImageFont.TransposedFont(font(size), Image.Transpose.ROTATE_90)
        _, _, width, height = map(int, turned.getbbox(text))
        self.draw.text((centre[0] - width // 2, centre[1] - height // 2), text, fill=colour, font=turned)

    def pixels(self, left, top, pixels):
        """Paste uint8 (height, width, 3)."""
        self.image.paste(Image.fromarray(np.ascontiguousarray(pixels)), (left, top))

    def frame(self, left, top, size, colour, width):
        """A square line around a square of ``size`` pixels, all of it outside."""
        box = (left - width, top - width, left + size + width - 1, top + size + width - 1)
        self.draw.rectangle(box, outline=colour, width=width)

    def outline(self, left, top, visible, colour):
        """A line just outside of the ``visible`` pixels, bool (height, width), of a panel."""
        width = 2
        inside = Image.fromarray(np.pad(visible, width).astype(np.uint8) * 255)
        ring = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(2 * width + 1)), inside)
        self.image.paste(colour, (left - width, top - width), ring)

    def saved(self, path):
        """The picture, written to ``path`` as a PNG if there is one."""
        if path is not None:
            with replaced(path) as file:
                self.image.save(file, "PNG")
        return self.image


def font(size, text=""):
    """Pillow's own font, which has little beyond ASCII; a system font if it lacks a character of ``text``."""
    return next((f for i, f in enumerate(_fonts(size)) if all(_has_glyph(i, c) for c in text)), _fonts(size)[0])


@functools.cache
def _fonts(size):
    found = [ImageFont.load_default(size)]
    for name in ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "Arial Unicode.ttf"):
        with contextlib.suppress(OSError):
            found.append(ImageFont.truetype(name, size))
    return found


@functools.cache
def _has_glyph(number, character):
    """Whether the ``number``-th font has it, rather than drawing its sign for a missing character."""
    mask = _fonts(LABEL)[number].getmask
    return character.isprintable() and bytes(mask(character)) != bytes(mask("\uffff"))


def text_width(text, size):
    return -int(-font(size, text).getlength(text) // 1)


def wrapped(text, width, size):
    """``text`` in lines that are at most ``width`` pixels wide, broken at spaces."""
    lines = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def shortened(text, width, size):
    """``text`` from outside, as a file's name, with "..." for a middle too long and only what one font can draw.

    A character that it lacks becomes the letter under its accent, or "?".
    """
    text = unicodedata.normalize("NFC", text)
    best = max(range(len(_fonts(LABEL))), key=lambda i: sum(_has_glyph(i, c) for c in text))
    bases = (c if _has_glyph(best, c) else unicodedata.normalize("NFKD", c)[0] for c in text)
    text = "".join(c if _has_glyph(best, c) else "?" for c in bases)
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
        if text_width(short, size) <= width:
            return short
    return ""


# --------------------------------------------------------------------------------------------------- images and patches


def enlarged(image, scale):
    """A data set's image enlarged: uint8 (3, S, S) -> (S scale, S scale, 3), each pixel a square."""
    return image.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)


def screen_scale(images):
    """How many screen pixels an image pixel gets, so that images (..., S, S) are about 96 wide."""
    return max(1, 96 // images.shape[-1])


def pixels_of(patches, grid, cell):
    """Which screen pixels belong to ``patches``: bool (height, width)."""
    member = np.zeros(grid, bool)
    member.flat[patches] = True
    return member.repeat(cell, axis=0).repeat(cell, axis=1)


def hidden_patches(grid, cell):
    """A picture of only hidden patches, separated by white lines so that they can be counted."""
    tile = np.full((cell, cell, 3), HIDDEN, np.uint8)
    tile[[0, -1]] = tile[:, [0, -1]] = WHITE
    return np.tile(tile, (*grid, 1))
