"""The user's own pictures, of any size and any format that Pillow reads, as the network takes them."""

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from minijepa.errors import DataError

MOST = 24  # pictures that fit on a sheet


@dataclass(frozen=True)
class OwnPictures:
    """Pictures of a folder: their names, uint8 ``images`` (n, 3, size, size), the number of ``more`` files, and
    ``skipped``, [(name, why)], the files that could not be read."""

    names: list
    images: np.ndarray
    more: int
    skipped: list

    def told(self):
        """The skipped files, in a line; "" if there are none."""
        files = ", ".join(f"{name} ({why})" for name, why in self.skipped[:5])
        rest = f" and {len(self.skipped) - 5} more" if len(self.skipped) > 5 else ""
        return f"skipped {files}{rest}" if self.skipped else ""


def read_folder(folder, size):
    """The first MOST pictures of a folder, by name -> OwnPictures.

    Files with a suffix that Pillow knows are tried, no hidden ones or subfolders; what it can't decode is skipped. Each
    picture is rotated as its EXIF says, put on white where it is transparent, cut to its central square and shrunk.
    Raises DataError for a folder without a readable picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is {'not a folder' if folder.exists() else 'missing'}: give a folder with pictures")
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    paths = sorted(
        path for path in folder.iterdir()
        if path.suffix.lower() in readable and not path.name.startswith(".") and path.is_file()
    )  # fmt: skip
    names, images, skipped = [], [], []
    while paths and len(images) < MOST:
        path = paths.pop(0)
        try:
            images.append(_read(path, size))
            names.append(path.name)
        except DataError as error:
            skipped.append((path.name, str(error)))
    if not images:
        name, why = skipped[0] if skipped else ("", "")
        found = f"no readable pictures ({len(skipped)} tried; {name}: {why})" if skipped else "no pictures"
        raise DataError(f"{folder} holds {found}: give a folder with files such as .jpg, .png or .webp")
    return OwnPictures(names, np.stack(images), len(paths), skipped)


def _read(path, size):
    """uint8 (3, size, size). Raises DataError with the reason if Pillow can't decode the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, odd palettes, odd EXIF
            with Image.open(path) as picture:
                picture.draft("RGB", (4 * size, 4 * size))  # a JPEG need not be decoded at full size
                white = _white(picture)
                square = _rgb(_square(_upright(picture)), white).resize((size, size), Image.Resampling.LANCZOS)
    except Image.UnidentifiedImageError:
        raise DataError("not a picture that Pillow can read") from None
    except Exception as error:
        raise DataError(str(error) or type(error).__name__) from None
    return np.asarray(square).transpose(2, 0, 1)


def _upright(picture):
    """Rotated as its EXIF says; unchanged if that can't be read."""
    picture.load()
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _square(picture):
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _white(picture):
    """The value of white in a picture of one channel and more than 8 bits; None for all others."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):
        kind = "floats" if picture.mode == "F" else "signed or 32-bit numbers"
        raise ValueError(f"{kind} of unknown scale: save it with 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return None
    bits = getattr(picture, "tag_v2", {}).get(ExifTags.Base.BitsPerSample)  # of a TIFF
    return 4095 if bits == (12,) else 65535


def _rgb(picture, white):
    """In three channels of 8 bits, on white."""
    if white is not None:
        picture = Image.fromarray((np.asarray(picture).clip(0, white) / (white / 255)).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
