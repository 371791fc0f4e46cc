"""Pictures: their sizes, and known colours at known places."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from minijepa.data import cifar10, shapes
from minijepa.data.masking import Masks, MultiBlockMasker
from minijepa.pictures import (
    Curves,
    canvas,
    confusion_picture,
    curves,
    curves_picture,
    masks_picture,
    neighbours_picture,
    own_images_picture,
    pca_picture,
    predictions_picture,
)
from minijepa.pictures.canvas import (
    BLOCK_COLOURS,
    BLUE,
    GREY,
    HIDDEN,
    INK,
    LABEL,
    WHITE,
    Sheet,
    font,
    shortened,
    text_width,
)
from minijepa.pictures.curves import PLOT
from minijepa.training.metrics import CURVES

CLASSES = ["cat", "dog", "ship"]


def images_of(count, size=32):
    return np.random.default_rng(0).integers(0, 200, (count, 3, size, size), dtype=np.uint8)


def panel(sheet, row, column, rows=1, size=128):
    """The pixels of one panel of a masks_picture with ``rows`` rows, found from its lower left: (size, size, 3)."""
    left = 28 + column * (size + 12) + 14 * min(column, 2)
    top = sheet.height - 28 - rows * (size + 12) + 12 + row * (size + 12)
    return np.asarray(sheet)[top : top + size, left : left + size]


def test_masks_picture_shows_the_visible_patches_and_hides_the_others():
    images = images_of(2)
    masks = Masks.from_lists([[0, 1, 9], [63]], [[[18, 19, 26, 27], [7]], [[0, 8], [62, 63]]])
    sheet = masks_picture(images, masks, patch_size=4)
    assert sheet.mode == "RGB" and sheet.width == 28 + 4 * 128 + 2 * 26 + 12 + 28
    for row, (context, blocks) in enumerate(zip(masks.context, masks.targets)):
        pixels = images[row].transpose(1, 2, 0).repeat(4, axis=0).repeat(4, axis=1)
        np.testing.assert_array_equal(panel(sheet, row, 0, rows=2), pixels)
        for column, patches in enumerate([context, *blocks], start=1):
            shown = panel(sheet, row, column, rows=2)
            for patch in range(64):
                place = np.s_[patch // 8 * 16 : patch // 8 * 16 + 16, patch % 8 * 16 : patch % 8 * 16 + 16]
                inner = np.s_[2:-2, 2:-2]  # outlines and patch lines run along the edges of hidden patches
                if patch in patches:
                    np.testing.assert_array_equal(shown[place], pixels[place])
                elif column == 1:
                    assert (shown[place][inner] == HIDDEN).all()
                else:
                    np.testing.assert_allclose(shown[place][inner], 0.8 * 255 + 0.2 * pixels[place][inner], atol=1)


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
    heading = np.asarray(sheet)[: sheet.height - 28 - 128 - 4]
    assert (heading == BLOCK_COLOURS[0]).all(axis=-1).any() and (heading == INK).all(axis=-1).any()


def test_masks_picture_lines_between_hidden_patches_are_white():
    sheet = masks_picture(images_of(1), Masks.from_lists([[0]], [[[1]]]), patch_size=4)
    shown = panel(sheet, 0, 1)
    assert (shown[64, 32:] == WHITE).all() and (shown[32:, 64] == WHITE).all() and (shown[70, 70] == HIDDEN).all()


def test_masks_picture_of_sampled_masks_other_grids_and_sizes(tmp_path):
    masks = MultiBlockMasker((6, 6), num_targets=5).sample(3, np.random.default_rng(0))
    sheet = masks_picture(images_of(3, size=48), masks, patch_size=8, path=tmp_path / "masks.png")
    assert sheet.width == 28 + 7 * 192 + 2 * 26 + 4 * 12 + 28
    with Image.open(tmp_path / "masks.png") as saved:
        assert saved.format == "PNG"
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(sheet))


def cells(picture, classes):
    """The colour near the upper left corner of each cell of a confusion_picture: (C, C, 3)."""
    pixels, count = np.asarray(picture), len(classes)
    left = 28 + max(text_width(name, 15) for name in classes) + 44
    top = picture.height - 28 - count * 44
    return pixels[top + 3 : top + count * 44 : 44, left + 3 : left + count * 60 : 60]


def test_confusion_picture_shades_cells_by_their_share_of_the_row():
    matrix = np.array([[50, 0, 50], [0, 3, 0], [10, 0, 990]])
    picture = confusion_picture(matrix, CLASSES)
    colours = cells(picture, CLASSES).astype(int)
    brightness = colours.sum(axis=-1)
    share = matrix / matrix.sum(axis=1, keepdims=True)
    order = np.argsort(share, axis=None, kind="stable")
    assert (np.diff(brightness.flat[order]) <= 0).all()  # the larger the share, the darker
    assert (colours[0, 0] == colours[0, 2]).all()  # rows are normalised: equal shares of different counts ...
    assert (colours[1, 1] == (23, 55, 130)).all() and (colours[0, 1] == (245, 247, 250)).all()
    assert brightness[2, 0] < brightness[0, 1]  # 1% can be told from nothing


def test_confusion_picture_divides_by_the_rows_total_and_leaves_a_class_without_images_pale():
    matrix = np.array([[2, 1, 1], [0, 0, 0], [9, 0, 27]])
    colours = cells(confusion_picture(matrix, CLASSES), CLASSES)
    middle = (colours == (96, 150, 230)).all(axis=-1)  # the colour of a quarter
    np.testing.assert_array_equal(middle, [[False, True, True], [False] * 3, [True, False, False]])
    assert (colours[1] == (245, 247, 250)).all()


def test_confusion_picture_makes_room_for_long_names():
    short, long = (confusion_picture(np.eye(9), [*"abcdefgh", name]) for name in ("i", "a very long class name"))
    assert long.width > short.width + 8 * 80


def line_heights(picture, corner=(28, 66)):
    """For each pixel column of a panel's plot, the blue pixels' mean row, from 0 at its top to 1 at its bottom."""
    left, top, right, bottom = (PLOT[i] + corner[i % 2] for i in range(4))
    plot = np.asarray(picture)[top - 3 : bottom + 4, left:right]
    blue = (np.abs(plot.astype(int) - BLUE).sum(axis=-1) < 120).astype(float)
    rows = np.arange(-3, bottom - top + 4) / (bottom - top)
    with np.errstate(invalid="ignore"):
        return (blue * rows[:, None]).sum(axis=0) / blue.sum(axis=0)


def test_curves_picture_draws_the_line_where_the_values_are():
    x = np.arange(11)
    heights = line_heights(curves_picture(Curves({"loss": 5.0 - 2 * x}, x)))
    np.testing.assert_allclose(heights[5:-8], np.linspace(0, 1, len(heights))[5:-8], atol=0.03)
    heights = line_heights(curves_picture(Curves({"up": x**2}, x)))
    assert heights[5] > 0.97 and abs(heights[len(heights) // 2] - 0.75) < 0.03 and heights[-3] < 0.08


def test_curves_picture_leaves_out_values_that_are_not_finite():
    values = np.array([np.nan, 2, np.nan, np.inf, 2, 4, np.nan])
    heights = line_heights(curves_picture(Curves({"knn": values}, np.arange(7))))
    sixth = len(heights) / 6
    assert np.isnan(heights[: int(sixth) - 4]).all()  # not measured yet, but the axis still starts at 0
    np.testing.assert_allclose(heights[int(sixth) + 5 : int(4 * sixth) - 3], 1, atol=0.02)
    assert np.isnan(heights[int(5 * sixth) + 6 :]).all()


def test_curves_picture_of_constants_single_points_extremes_and_nothing(tmp_path):
    np.testing.assert_allclose(line_heights(curves_picture(Curves({"wd": [0.05] * 3}, [1, 2, 3]))), 0.5, atol=0.02)
    point = line_heights(curves_picture(Curves({"loss": [3.0]}, [1])))
    assert abs(point[0] - 0.5) < 0.02 and np.isnan(point[6:]).all()
    for values in ([], [np.nan, np.nan]):
        assert np.isnan(line_heights(curves_picture(Curves({"loss": values}, range(len(values)))))).all()
    for rates in ([0, 1e-323], [1e-310, 2e-310], [-1e-323, 1.3e308]):  # the ends of float64's range
        heights = line_heights(curves_picture(Curves({"rate": rates}, [1, 2])))
        assert np.isfinite(heights).any()
        np.testing.assert_allclose(heights[np.isfinite(heights)], 0.5, atol=0.02)
    curves_picture(Curves({}, []), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_curves_picture_shows_steps_under_epochs_and_levels_to_compare_with():
    x, steps = np.arange(1, 5), np.linspace(0, 4, 4001)
    spike = np.where(np.arange(4001) == 1000, 9.0, 1.0)
    run = Curves({"loss": [1.0] * 4}, x, {"loss": (steps, spike)}, {"loss": {"chance": 10.0}})
    plot = np.asarray(curves_picture(run))[66 + 34 : 66 + 164, 28 + 52 : 28 + 312].astype(int)
    assert line_heights(curves_picture(run))[-3] == pytest.approx(0.9, abs=0.02)  # the axis reaches up to the level
    pale = np.abs(plot - (170, 205, 234)).sum(axis=-1) < 40
    columns = np.flatnonzero(pale[20:100].any(axis=0))  # one step of 4,001 is still to be seen, at x = 1
    assert len(columns) and np.abs(columns - 65).max() <= 2
    dashes = (np.abs(plot[0:3] - GREY).sum(axis=-1) < 30).any(axis=0)
    assert 0.4 < dashes.mean() < 0.7


def test_curves_of_several_runs_have_a_legend_and_their_own_colours():
    runs = [Curves({"loss": [1.0, 1.0 + i]}, [1, 2], name=f"run {i}") for i in range(3)]
    alone, together = curves_picture(runs[0]), curves_picture(runs)
    assert together.height == alone.height + 3 * 24
    pixels = np.asarray(together).reshape(-1, 3)
    assert all((pixels == colour).all(axis=1).sum() > 100 for colour in curves.COLOURS[:3])
    assert not (np.asarray(alone).reshape(-1, 3) == curves.COLOURS[1]).all(axis=1).any()


def test_envelopes_keep_first_last_lowest_and_highest():
    points = [(0.005 * i, float(i * 37 % 100)) for i in range(1000)]
    thin = curves.envelope(points)
    assert len(thin) <= 4 * 5 and thin == sorted(thin)
    for i in range(5):
        all_, kept = ([p for p in some if i <= p[0] < i + 1] for some in (points, thin))
        assert (kept[0], kept[-1]) == (all_[0], all_[-1])
        assert {min(y for _, y in all_), max(y for _, y in all_)} <= {y for _, y in kept}


def test_curves_picture_has_a_panel_for_each_column_three_to_a_row():
    columns = {f"metric_{i}": np.arange(5.0) * (-1) ** i for i in range(4)}
    picture = curves_picture(Curves(columns, range(5)), title="run")
    assert picture.size == (3 * 330 + 56, 66 + 2 * 212 + 28)
    rising = line_heights(picture, corner=(28 + 2 * 330, 66))
    falling = line_heights(picture, corner=(28, 66 + 212))
    assert rising[15] > 0.8 and falling[15] < 0.2


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.318, 0.532), (0, 1), (-0.2, 0.7), (1e-5, 1.5e-3), (1e-4, 1.2e-4), (1e3, 2e9), (113, 169), (3, 3)],
)
def test_ticks_are_round_few_and_around_the_values(low, high):
    ticks = curves.ticks(low, high, 4)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 7 and ticks[0] <= low + 1e-6 * step and high <= ticks[-1] + 1e-6 * step
    assert ticks[0] > low - step - 1e-9 or low == high
    assert f"{step:e}"[0] in "125" or f"{step:.0e}"[0] in "125"
    texts = curves.tick_texts(ticks)
    assert max(map(len, texts)) <= 8
    np.testing.assert_allclose([float(text.replace(",", "")) for text in texts], ticks, atol=step * 1e-6)


# -------------------------------------------------------------------------------------------------- sheets of images


def test_neighbours_picture_frames_the_querys_class_alone():
    images, bank = images_of(2), images_of(5)
    labels, bank_labels = np.array([0, 1]), np.array([0, 0, 1, 1, 2])
    nearest, cosines = np.array([[4, 0, 2], [3, 2, 1]]), np.full((2, 3), 0.5)
    sheet = neighbours_picture(images, labels, bank, bank_labels, nearest, cosines, CLASSES)
    top, framed = sheet.height - 28 - 2 * (96 + 24 + 12) + 12, []
    for row in range(2):
        for column in range(3):
            left, y = 28 + 96 + 26 + column * (96 + 12), top + row * (96 + 24 + 12)
            shown = np.asarray(sheet)[y : y + 96, left : left + 96]
            np.testing.assert_array_equal(shown[1::3, 1::3], bank[nearest[row, column]].transpose(1, 2, 0))
            framed.append(np.asarray(sheet)[y + 40, left - 2].tolist() == list(BLUE))
    assert framed == [False, True, False, True, True, False]


def test_predictions_picture_fills_the_block_and_shows_no_more_than_the_context():
    images, filling = images_of(1), np.full((1, 3, 32, 32), 77, np.uint8)
    masks = Masks.from_lists([[0, 9]], [[[27, 28]]])
    sheet = predictions_picture(images, masks, {"guess": (filling, np.array([0.5]))}, 4)
    top, left = sheet.height - 28 - 128 - 24, 28 + 2 * (128 + 26)
    shown = np.asarray(sheet)[top : top + 128, left : left + 128]
    assert (shown[48:64, 48:80] == 77).all() and (shown[66:, 4:12] != 77).all()
    np.testing.assert_array_equal(shown[2:16:4, 2:16:4], images[0, :, :4, :4].transpose(1, 2, 0))
    hidden = shown[112:128, 112:128]
    assert (hidden[2:-2, 2:-2] == HIDDEN).all()


def all_pictures(classes, note):
    """Every kind of picture, of random content."""
    draw, c = np.random.default_rng(0), len(classes)
    images, labels = images_of(4), np.arange(4) % c
    nearest, cosines = draw.integers(0, 4, (4, 3)), draw.random((4, 3))
    masks = MultiBlockMasker().sample(4, draw)
    one = Masks.from_lists(masks.context, [blocks[:1] for blocks in masks.targets])
    fillings = {"hidden block": (images, None), "nearest to\nprediction": (images, draw.random(4))}
    caption = "What is to be seen in a picture, at some length, so that it needs more than a line. " * 3
    names = ["a.png", "a name that is far too long " * 20, "süßes ✓.png", "d"]
    nothing, tiny, huge, few = [np.nan, np.nan], [-1e-9, 1e-9], [1e3, 1e9], [0.0001, 0.00012]
    return [
        masks_picture(images, masks, 4),
        confusion_picture(np.diag([0, *range(1000, 999 + c)]), classes, note=note),
        *(curves_picture(Curves(dict.fromkeys(CURVES, values), [1, 200]), None, "run", caption)
          for values in (nothing, tiny, huge, few)),
        curves_picture(Curves({"loss": np.arange(300.0)}, np.arange(1, 301))),
        curves_picture([Curves({name: [1.0, i] for name in ("RankMe", "EMA")}, [1, 2],
                               {"RankMe": ([0.0, 2.0], [3.0, 1.0])},
                               {"RankMe": {"chance": 0.1, "untrained": 1.5}}, f"run {i}") for i in range(6)]),
        neighbours_picture(images, labels, images, labels, nearest, cosines, classes, None, caption, note),
        pca_picture(images, {"over all images": images, "within image": images}, None, caption, note),
        pca_picture(images[:1], {"over all images": images}, None, caption, note),
        predictions_picture(images, one, fillings, 4, None, caption, note),
        own_images_picture(names, images, draw.dirichlet(np.ones(c), 4), images, classes,
                           (images, labels, nearest, cosines), None, caption, note),
        own_images_picture(names, images, draw.dirichlet(np.ones(c), 4), images, classes, None, None, caption, note),
    ]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: {sheet: ([(text, its box)], [boxes of pasted pixels])}"""
    sheets, real_text, real_pixels = {}, Sheet.text, Sheet.pixels

    def text(sheet, place, text, size=LABEL, colour=INK, anchor="ls"):
        real_text(sheet, place, text, size, colour, anchor)
        if text:
            box = sheet.draw.textbbox(place, text, font=font(size), anchor=anchor)
            sheets.setdefault(sheet, ([], []))[0].append((text, box))

    def pixels(sheet, left, top, pixels):
        real_pixels(sheet, left, top, pixels)
        sheets.setdefault(sheet, ([], []))[1].append((left, top, left + pixels.shape[1], top + pixels.shape[0]))

    monkeypatch.setattr(Sheet, "text", text)
    monkeypatch.setattr(Sheet, "pixels", pixels)
    return sheets


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("classes", [cifar10.CLASSES, shapes.CLASSES], ids=["cifar10", "shapes"])
@pytest.mark.parametrize("note", ["", "laptop, step 4,686", "a-run-folder-with-a-long-name-12, step 1,234,567"])
def test_text_stays_on_the_sheet_and_off_other_text_and_images(drawn, classes, note):
    assert len(all_pictures(classes, note)) == len(drawn) == 14
    for sheet, (texts, images) in drawn.items():
        width, height = sheet.image.size
        for i, (text, box) in enumerate(texts):
            assert box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height, text
            for other, other_box in texts[:i]:
                assert not overlap(box, other_box), (text, other)
            assert not any(overlap(box, image) for image in images), text
        for i, box in enumerate(images):
            assert not any(overlap(box, other) for other in images[:i])


def test_every_character_that_is_drawn_has_a_glyph(drawn, monkeypatch):
    """Pillow's own font is small: what it lacks, a superscript or a dash, it draws as an empty box."""
    own = {size: canvas._fonts(size)[:1] for size in range(8, 30)}  # as where the system has no other
    monkeypatch.setattr(canvas, "_fonts", own.get)
    for classes in (cifar10.CLASSES, shapes.CLASSES):
        all_pictures(classes, "note")
    characters = {c for texts, _ in drawn.values() for text, _ in texts for c in text}
    boxes = {c for c in characters if bytes(font(15).getmask(c)) == bytes(font(15).getmask("\uffff"))}
    assert set("R2%?") < characters and not boxes


def test_a_name_too_long_loses_its_middle():
    short = shortened("photo of a dog.jpg " * 30 + "end.png", 300, LABEL)
    assert short.startswith("photo of") and short.endswith("end.png") and "..." in short
    assert 280 < text_width(short, LABEL) <= 300
    assert shortened("abc", 0, LABEL) == ""


def test_a_name_keeps_its_letters(monkeypatch):
    """As far as one font of the system has them all; Pillow's own lacks even é, which leaves e."""
    fonts = canvas._fonts(LABEL)
    names = ["süße été.jpg", unicodedata.normalize("NFD", "süße été.jpg"), "a\nb.jpg"]
    if len(fonts) > 1:
        assert [shortened(name, 300, LABEL) for name in names] == [names[0], names[0], "a?b.jpg"]
        assert font(LABEL, names[0]) is fonts[1] and font(LABEL, "a.jpg") is fonts[0]
    monkeypatch.setattr(canvas, "_fonts", lambda size: fonts[:1])
    assert [shortened(name, 300, LABEL) for name in names] == ["su?e ete.jpg", "su?e ete.jpg", "a?b.jpg"]


# In linear RGB, what is left of a colour without red (protan) or green (deutan) cones: Viénot et al. 1999.
SEEN = {
    "normal": np.eye(3),
    "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


@pytest.mark.parametrize("kind", SEEN)
def test_colours_are_told_apart_by_colour_blind_readers(kind):
    def oklab(colour):
        linear = np.clip(np.array(SEEN[kind]) @ ((np.array(colour) / 255 + 0.055) / 1.055) ** 2.4, 0, 1)
        cones = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]] @ linear
        return [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]] @ np.cbrt(cones)

    for i, one in enumerate([*BLOCK_COLOURS, INK]):
        for other in BLOCK_COLOURS[:i]:
            assert np.linalg.norm(oklab(one) - oklab(other)) > 0.1, (one, other)
