"""A folder of one's own pictures: every format, bit depth and orientation, and what cannot be read."""

import struct

import numpy as np
import pytest
from PIL import Image

from minijepa.data import folder, read_folder
from minijepa.errors import DataError


def test_pictures_are_read_as_the_network_takes_them(own_folder):
    own = read_folder(own_folder, 32)
    assert own.names == ["a.jpg", "b.PNG", "c.webp", "d.bmp", "e.gif", "f.tif", "g.png", "h.png"]
    assert own.more == 0 and own.skipped == [] and own.told() == ""
    images = own.images
    assert images.shape == (8, 3, 32, 32) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[1], images[3])  # without loss both
    assert (images[7] == 255).all() and (images[6, 0] == images[6, 1]).all()


def test_pictures_are_cut_to_their_middle_and_put_on_white(tmp_path):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200  # the square in the middle
    Image.fromarray(wide).save(tmp_path / "a.png")
    clear = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    clear.save(tmp_path / "b.png")
    images = read_folder(tmp_path, 8).images
    assert (images[0] == 200).all() and (images[1] == 255).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_as_exif_says_and_left_as_they_are_where_it_is_broken(tmp_path, suffix):
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20, :20] = 255  # light in the upper left
    seen = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    for orientation in seen:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / f"{orientation}.{suffix}", exif=exif)
    broken = [b"Exif\0\0MM\0", b"\0", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"]
    for i, exif in enumerate(broken if suffix != "tif" else []):  # Pillow writes no TIFF with these
        Image.fromarray(pixels).save(tmp_path / f"x{i}.{suffix}", exif=exif)
    own = read_folder(tmp_path, 8)
    assert not own.skipped
    for name, image in zip(own.names, own.images):
        corners = image[0][::7, ::7] > 127
        assert np.argwhere(corners).tolist() == [list(seen.get(int(name[0]) if name[0] != "x" else 1))], name


def test_pictures_of_more_than_8_bits_keep_their_grey(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
    for name in ("a.png", "b.tif", "c.pgm", "d.jp2"):
        grey.save(tmp_path / name)
    packed = bytes([0x64, 0x66, 0x46]) * 32  # 12 bits a pixel, 0x646 = 1606 of 4095: no library here writes that
    tags = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, len(packed))]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    (tmp_path / "e.tif").write_bytes(header + packed + struct.pack("<H", len(tags)) + directory + bytes(4))
    own = read_folder(tmp_path, 4)
    assert own.names == ["a.png", "b.tif", "c.pgm", "d.jp2", "e.tif"] and (own.images == 100).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32, np.int16])
def test_a_picture_without_a_known_white_is_refused(tmp_path, dtype):
    """0 to 1, 0 to 255 or anything else: as 16 bits, it would come out black."""
    Image.fromarray(np.full((10, 10), 200, dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"1 tried; a\.tiff: .* of unknown scale: save it with"):
        read_folder(tmp_path, 8)


def test_unreadable_files_are_skipped_and_named(tmp_path):
    picture = Image.new("RGB", (9, 9), (200, 100, 50))
    picture.save(tmp_path / "p.png")
    film, whole = b"\0\0\1\xb3" + bytes(99), (tmp_path / "p.png").read_bytes()
    others = {
        "a.MPG": film, "b.mpeg": film, "c.h5": b"\x89HDF\r\n\x1a\n" + bytes(99), "d.emf": bytes(99), "e.grib": b"GRIB",
        "f.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n", "g.png": whole[:40], "h.jpg": b"", "i.mp4": film, "j.txt": b"text",
    }  # fmt: skip
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    own = read_folder(tmp_path, 4)
    assert own.names == ["p.png"] and (own.images[0, :, 0, 0] == (200, 100, 50)).all() and own.more == 0
    assert [name for name, _ in own.skipped] == [name for name in others if name[0] < "i"]
    assert own.told().startswith("skipped a.MPG (") and own.told().endswith(") and 3 more")
    assert "\n" not in own.told()


def test_a_sheet_takes_the_first_pictures_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MOST", 3)
    for i in (5, 3, 1, 4, 2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    own = read_folder(tmp_path, 4)
    assert own.names == ["1.png", "2.png", "3.png"] and len(own.images) == 3 and own.more == 2


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tif", "a.bmp"])
def test_a_picture_that_breaks_off_is_one_line(tmp_path, name):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    picture.save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (len(whole) // 2, len(whole) // 10, 30):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"no readable pictures \(1 tried; {name}: .*\): give a") as error:
            read_folder(tmp_path, 32)
        assert "\n" not in str(error.value)
