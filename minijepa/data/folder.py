"""Pictures of the user's own: any size and any format that Pillow reads, as the network takes them."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from minijepa.errors import DataError

MOST = 24  # pictures that fit on a sheet


def read_folder(folder, size):
    """The pictures of a folder: (names, uint8 images (n, 3, size, size), how many more there are), by name.

    A picture is a file with a suffix of a format that Pillow reads; others, hidden files and subfolders are left alone.
    Each is turned as its camera says, put on white where it is transparent, cut to the square in its middle and shrunk.
    The first MOST are read. Raises DataError for a folder without pictures, and for a picture that can't be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is {'not a folder' if folder.exists() else 'missing'}: give a folder with pictures")
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    paths = sorted(
        path for path in folder.iterdir()
        if path.suffix.lower() in readable and not path.name.startswith(".") and path.is_file()
    )  # fmt: skip
    if not paths:
        raise DataError(f"{folder} holds no pictures: give a folder with files such as .jpg, .png or .webp")
    images = np.stack([_read(path, size) for path in paths[:MOST]])
    return [path.name for path in paths[:MOST]], images, len(paths) - len(images)


def _read(path, size):
    """uint8 (3, size, size)"""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, odd palettes, odd EXIF
            with Image.open(path) as picture:
                picture.draft("RGB", (4 * size, 4 * size))  # a JPEG need not be decoded at full size
                square = _rgb(_square(ImageOps.exif_transpose(picture))).resize((size, size), Image.Resampling.LANCZOS)
    except (Image.UnidentifiedImageError, Image.DecompressionBombError):
        raise DataError(f"{path} is no picture that Pillow can read, or larger than it dares: move it away") from None
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise DataError(f"{path} can't be read as a picture ({error}): move it away") from None
    return np.asarray(square).transpose(2, 0, 1)


def _square(picture):
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _rgb(picture):
    """In three channels of 8 bits, on white."""
    if picture.mode == "F":
        raise ValueError("floats, of which only who made them knows the scale: save it with 8 or 16 bits")
    if picture.mode.startswith("I"):  # 16 bits a pixel
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
