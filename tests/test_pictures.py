"""Pictures: their sizes, and known colours at known places."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from minijepa.data import cifar10, shapes
from minijepa.data.masking import Masks, MultiBlockMasker
from minijepa.errors import DtypeError, ShapeError
from minijepa.pictures import BLOCK_COLOURS, BLUE, HIDDEN, INK, WHITE, confusion_picture, curves_picture, masks_picture
from minijepa.training import CURVES

CLASSES = ["cat", "dog", "ship"]


def images_of(count, size=32):
    return np.random.default_rng(0).integers(0, 200, (count, 3, size, size), dtype=np.uint8)


def panel(sheet, row, column, size=128):
    """The pixels of one panel of a masks_picture with two groups before the targets: (size, size, 3)."""
    left = 28 + column * (size + 12) + 14 * min(column, 2)
    top = 62 + row * (size + 12)
    return np.asarray(sheet)[top : top + size, left : left + size]


def near(a, b, tolerance=1):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= tolerance


def test_masks_picture_shows_the_visible_patches_and_hides_the_others():
    images = images_of(2)
    masks = Masks.from_lists([[0, 1, 9], [63]], [[[18, 19, 26, 27], [7]], [[0, 8], [62, 63]]])
    sheet = masks_picture(images, masks, patch_size=4)
    assert sheet.mode == "RGB" and sheet.size == (28 + 4 * 128 + 2 * 26 + 12 + 28, 62 + 2 * 128 + 12 + 28)
    for row, (context, blocks) in enumerate(zip(masks.context, masks.targets)):
        pixels = images[row].transpose(1, 2, 0).repeat(4, axis=0).repeat(4, axis=1)
        np.testing.assert_array_equal(panel(sheet, row, 0), pixels)
        for column, patches in enumerate([context, *blocks], start=1):
            shown = panel(sheet, row, column)
            for patch in range(64):
                place = np.s_[patch // 8 * 16 : patch // 8 * 16 + 16, patch % 8 * 16 : patch % 8 * 16 + 16]
                inner = np.s_[2:-2, 2:-2]  # outlines and patch lines run along the edges of hidden patches
                if patch in patches:
                    np.testing.assert_array_equal(shown[place], pixels[place])
                elif column == 1:
                    assert (shown[place][inner] == HIDDEN).all()
                else:
                    assert near(shown[place][inner], 0.8 * 255 + 0.2 * pixels[place][inner])


def test_masks_picture_outlines_blocks_in_the_colours_of_their_headings():
    masks = Masks.from_lists([[0]], [[[27]]])
    sheet = masks_picture(images_of(1), masks, patch_size=4)
    shown = panel(sheet, 0, 2)
    # Patch 27 stands in row 3, column 3, so its pixels are 48 to 63 in both directions, and the line is just outside.
    ring = np.zeros((128, 128), bool)
    ring[46:66, 46:66] = True
    ring[48:64, 48:64] = False
    assert (shown[ring] == BLOCK_COLOURS[0]).all()
    assert not (shown[~ring] == BLOCK_COLOURS[0]).all(axis=-1).any()
    assert (panel(sheet, 0, 1)[16:18, :18] == INK).all()  # below the context's patch 0
    heading = np.asarray(sheet)[:62]
    assert (heading == BLOCK_COLOURS[0]).all(axis=-1).any() and (heading == INK).all(axis=-1).any()


def test_masks_picture_lines_between_hidden_patches_are_white():
    sheet = masks_picture(images_of(1), Masks.from_lists([[0]], [[[1]]]), patch_size=4)
    shown = panel(sheet, 0, 1)
    assert (shown[64, 32:] == WHITE).all() and (shown[32:, 64] == WHITE).all() and (shown[70, 70] == HIDDEN).all()


def test_masks_picture_of_sampled_masks_other_grids_and_sizes(tmp_path):
    masks = MultiBlockMasker((6, 6), num_targets=5).sample(3, np.random.default_rng(0))
    sheet = masks_picture(images_of(3, size=48), masks, patch_size=8, path=tmp_path / "masks.png", scale=2)
    assert sheet.size == (28 + 7 * 96 + 2 * 26 + 4 * 12 + 28, 62 + 3 * 96 + 2 * 12 + 28)
    with Image.open(tmp_path / "masks.png") as saved:
        assert saved.format == "PNG"
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(sheet))


def test_masks_picture_refuses_what_does_not_fit():
    images, masks = images_of(2), Masks.from_lists([[0], [1]], [[[2]], [[3]]])
    with pytest.raises(DtypeError, match=r"uint8.*float32"):
        masks_picture(images.astype(np.float32), masks, 4)
    with pytest.raises(ShapeError, match="whole patches"):
        masks_picture(images, masks, 5)
    with pytest.raises(ShapeError, match="whole patches"):
        masks_picture(images.transpose(0, 2, 3, 1), masks, 4)
    with pytest.raises(ShapeError, match="3 images, but masks of 2"):
        masks_picture(images_of(3), masks, 4)
    with pytest.raises(ShapeError, match="name patch 3, but images have 1x1"):
        masks_picture(images, masks, 32)


def cells(picture, count):
    """The colour near the upper left corner of each cell of a confusion_picture: (count, count, 3)."""
    pixels = np.asarray(picture)
    cell_width, cell_height = 60, 46
    left, top = picture.width - 28 - count * cell_width, 98
    return pixels[top + 3 : top + count * cell_height : cell_height, left + 3 : picture.width - 28 : cell_width]


def test_confusion_picture_shades_cells_by_their_share_of_the_row(tmp_path):
    matrix = np.array([[50, 0, 50], [0, 3, 0], [10, 0, 990]])
    picture = confusion_picture(matrix, CLASSES, tmp_path / "confusion.png")
    colours = cells(picture, 3).astype(int)
    brightness = colours.sum(axis=-1)
    share = matrix / matrix.sum(axis=1, keepdims=True)
    order = np.argsort(share, axis=None, kind="stable")
    assert (np.diff(brightness.flat[order]) <= 0).all()  # the larger the share, the darker
    assert (colours[0, 0] == colours[0, 2]).all()  # rows are normalised: equal shares of different counts ...
    assert (colours[1, 1] == (23, 55, 130)).all() and (colours[0, 1] == (245, 247, 250)).all()
    assert brightness[2, 0] < brightness[0, 1]  # 1% can be told from nothing
    with Image.open(tmp_path / "confusion.png") as saved:
        assert saved.format == "PNG" and saved.size == picture.size


def test_confusion_picture_depends_on_shares_and_not_on_counts():
    matrix = np.array([[5, 1, 0], [2, 8, 2], [0, 0, 9]])
    few, many = confusion_picture(matrix, CLASSES), confusion_picture(7 * matrix, CLASSES)
    np.testing.assert_array_equal(np.asarray(few), np.asarray(many))


def test_confusion_picture_divides_by_the_rows_total():
    matrix = np.array([[2, 1, 1], [5, 0, 0], [9, 0, 27]])
    middle = cells(confusion_picture(matrix, CLASSES), 3) == (96, 150, 230)  # the colour of a quarter
    np.testing.assert_array_equal(middle.all(axis=-1), [[False, True, True], [False] * 3, [True, False, False]])


def test_confusion_picture_of_a_class_without_images():
    matrix = np.array([[5, 1, 0], [0, 0, 0], [0, 0, 9]])
    picture = confusion_picture(matrix, CLASSES)
    assert (cells(picture, 3)[1] == (245, 247, 250)).all()
    with pytest.raises(ShapeError, match=r"\(3, 3\) matrix, got \(2, 2\)"):
        confusion_picture(np.eye(2), CLASSES)


def test_confusion_picture_makes_room_for_long_names():
    short, long = (confusion_picture(np.eye(2), names) for names in (["a", "b"], ["a", "a very long class name"]))
    assert long.width > short.width + 3 * 80 and long.height == short.height


def line_heights(picture, corner=(8, 16)):
    """For each pixel column of a panel's plot, the blue pixels' mean row, from 0 at its top to 1 at its bottom."""
    left, top, right, bottom = corner[0] + 58, corner[1] + 40, corner[0] + 316, corner[1] + 160
    plot = np.asarray(picture)[top - 3 : bottom + 4, left:right]
    blue = (np.abs(plot.astype(int) - BLUE).sum(axis=-1) < 120).astype(float)
    rows = np.arange(-3, bottom - top + 4) / (bottom - top)
    with np.errstate(invalid="ignore"):
        return (blue * rows[:, None]).sum(axis=0) / blue.sum(axis=0)


def test_curves_picture_draws_the_line_where_the_values_are():
    x = np.arange(11)
    heights = line_heights(curves_picture({"loss": 5.0 - 2 * x}, x))
    np.testing.assert_allclose(heights[5:-8], np.linspace(0, 1, len(heights))[5:-8], atol=0.02)
    heights = line_heights(curves_picture({"up": x**2}, x))
    assert heights[5] > 0.97 and abs(heights[len(heights) // 2] - 0.75) < 0.02 and heights[-3] < 0.08


def test_curves_picture_leaves_out_values_that_are_not_finite():
    values = np.array([np.nan, 2, np.nan, np.inf, 2, 4, np.nan])
    heights = line_heights(curves_picture({"knn": values}, np.arange(7)))
    sixth = len(heights) / 6
    assert np.isnan(heights[: int(sixth) - 4]).all()  # not measured yet, but the axis still starts at 0
    np.testing.assert_allclose(heights[int(sixth) + 5 : int(4 * sixth) - 3], 1, atol=0.02)
    assert np.isnan(heights[int(5 * sixth) + 6 :]).all()


def test_curves_picture_of_constants_single_points_and_nothing(tmp_path):
    np.testing.assert_allclose(line_heights(curves_picture({"wd": [0.05] * 3}, [1, 2, 3])), 0.5, atol=0.02)
    point = line_heights(curves_picture({"loss": [3.0]}, [1]))
    assert abs(point[0] - 0.5) < 0.02 and np.isnan(point[6:]).all()
    for values in ([], [np.nan, np.nan]):
        assert np.isnan(line_heights(curves_picture({"loss": values}, range(len(values))))).all()
    curves_picture({}, [], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_curves_picture_has_a_panel_for_each_column_three_to_a_row():
    columns = {f"metric_{i}": np.arange(5.0) * (-1) ** i for i in range(4)}
    picture = curves_picture(columns, range(5), title="run")
    assert picture.size == (3 * 330 + 24, 64 + 2 * 190 + 12)
    rising = line_heights(picture, corner=(8 + 2 * 330, 64))
    falling = line_heights(picture, corner=(8, 64 + 190))
    assert rising[10] > 0.9 and falling[10] < 0.1
    assert curves_picture({"a": [1, 2]}, [0, 1]).size == (330 + 24, 16 + 190 + 12)
    with pytest.raises(ShapeError, match="'a' has shape"):
        curves_picture({"a": [1, 2, 3]}, [0, 1])


def test_every_character_that_is_drawn_has_a_glyph(monkeypatch):
    """Pillow's own font is small: what it lacks, a superscript or a dash, it draws as an empty box."""
    drawn, real = set(), ImageDraw.ImageDraw.text

    def text(draw, xy, text, *args, **kwargs):
        drawn.update(text)
        return real(draw, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    masks_picture(images_of(1), Masks.from_lists([[0]], [[[1], [2], [3], [4]]]), 4)
    for classes in (cifar10.CLASSES, shapes.CLASSES):
        confusion_picture(np.diag([0, *range(1, len(classes))]), classes)
    nothing, tiny, huge = [np.nan, np.nan], [-1e-9, 1e-9], [1e3, 1e9]
    for values in (nothing, tiny, huge):
        curves_picture(dict.fromkeys(CURVES, values), [1, 2], title="run")
    font = ImageFont.load_default(15)
    boxes = {c for c in drawn if bytes(font.getmask(c)) == bytes(font.getmask("\uffff"))}
    assert set("R2%") < drawn and not boxes
