"""Masks against the specification: exact probabilities of every size and place, and what every mask must hold."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from minijepa.data.masking import Masks, MultiBlockMasker, block_size
from minijepa.errors import ConfigError
from minijepa.ops.rows import offsets_of


def specified_block_size(num_patches, scale, aspect_ratio, grid):
    """Section 5 of the specification, line for line."""
    num_patches_in_block = int(num_patches * scale)
    block_height = round(math.sqrt(num_patches_in_block / aspect_ratio))
    block_width = round(block_height * aspect_ratio)
    return max(1, min(block_height, grid[0])), max(1, min(block_width, grid[1]))


def expected_blocks(grid, scale, aspect_ratio):
    """{(height, width, top, left): probability} of section 5: n = int(N scale) by its share, the aspect integrated."""
    aspects = np.linspace(*aspect_ratio, 20_001)[:-1] + (aspect_ratio[1] - aspect_ratio[0]) / 40_000
    cells = grid[0] * grid[1]
    expected = Counter()
    for n in range(int(cells * scale[0]), int(cells * scale[1]) + 1):
        share = (min((n + 1) / cells, scale[1]) - max(n / cells, scale[0])) / (scale[1] - scale[0])
        height = np.rint(np.sqrt(n / aspects))
        width = np.rint(height * aspects)
        heights, widths = (np.clip(x, 1, most).astype(int).tolist() for x, most in zip((height, width), grid))
        for (h, w), count in Counter(zip(heights, widths)).items():
            places = [(top, left) for top in range(grid[0] - h + 1) for left in range(grid[1] - w + 1)]
            for place in places:
                expected[h, w, *place] += share * count / len(aspects) / len(places)
    return expected


def chi_square(first, last, grid, expected):
    """Pearson's statistic in standard deviations, of blocks given by their first and last patch, (n,) each."""
    (top, left), (bottom, right) = np.unravel_index(first, grid), np.unravel_index(last, grid)
    found = Counter(zip((bottom - top + 1).tolist(), (right - left + 1).tolist(), top.tolist(), left.tolist()))
    count = len(first)
    common = {block for block, p in expected.items() if p * count >= 5}
    pairs = [(found[block], expected[block] * count) for block in common]
    pairs.append((count - sum(n for n, _ in pairs), count - sum(e for _, e in pairs)))  # the rare ones together
    statistic = sum((n - e) ** 2 / max(e, 1) for n, e in pairs)
    return (statistic - len(common)) / math.sqrt(2 * len(common))


@pytest.mark.parametrize("grid", [(8, 8), (7, 5)])
def test_sizes_and_places_of_blocks_have_the_probabilities_of_the_specifications_section_5(grid):
    """One chi-square of 5,000 samples over every size and place: targets, and contexts under targets of one patch."""
    masker = MultiBlockMasker(grid)
    masks = masker.sample(5000, np.random.default_rng(0))
    expected = expected_blocks(grid, masker.target_scale, masker.target_aspect_ratio)
    starts = offsets_of(masks.target_lengths.ravel())
    first, last = masks.target_index[starts[:-1]], masks.target_index[starts[1:] - 1]
    assert abs(chi_square(first, last, grid, expected)) < 4

    tiny = 1 / (grid[0] * grid[1])
    masks = MultiBlockMasker(grid, num_targets=1, target_scale=(tiny, tiny), target_aspect_ratio=(1, 1)).sample(
        5000, np.random.default_rng(1)
    )
    boxes = [np.unravel_index(context, grid) for context in masks.context]
    corners = np.array([[(rows.min(), columns.min()), (rows.max(), columns.max())] for rows, columns in boxes])
    first, last = (np.ravel_multi_index(tuple(corners[:, i].T), grid) for i in (0, 1))
    assert abs(chi_square(first, last, grid, expected_blocks(grid, masker.context_scale, (1, 1)))) < 4


@pytest.mark.parametrize("grid", [(8, 8), (4, 4), (7, 5), (1, 9), (14, 14)])
def test_block_size_rounds_and_clamps_as_the_specification_does(grid):
    patches, draw = grid[0] * grid[1], random.Random(0)
    # Random ones, and ratios and scales that land exactly on halves, where Python rounds to the even neighbour.
    cases = [(draw.uniform(0.01, 1), draw.uniform(0.2, 5)) for _ in range(300)]
    cases += [(n / patches, aspect) for n in range(1, 65) for aspect in (0.25, 0.5, 1.0, 1.5, 2.5, 4.0)]
    height, width = block_size(*np.array(cases).T, grid)
    assert list(zip(height.tolist(), width.tolist())) == [specified_block_size(patches, *case, grid) for case in cases]


def test_scale_aspect_and_place_are_independent_of_each_other_and_across_blocks_and_images():
    masker = MultiBlockMasker(grid=(40, 40), min_context=1)
    masks = masker.sample(2000, np.random.default_rng(0))
    first, last = (np.array([[block[i] for block in blocks] for blocks in masks.targets]) for i in (0, -1))
    height, width, top = last // 40 - first // 40 + 1, last % 40 - first % 40 + 1, first // 40 / 40
    scale, aspect = height * width / 1600, width / height
    context = np.array([patches.max() // 40 for patches in masks.context])  # where the context's block ends, mostly
    noise = 4.5 / math.sqrt(2000)
    for a, b in [
        (scale[:, 0], aspect[:, 0]), (scale[:, 0], scale[:, 1]), (aspect[:, 0], aspect[:, 1]), (top[:, 0], top[:, 1]),
        (scale[:-1, 0], scale[1:, 0]), (top[:-1, 0], top[1:, 0]), (context[:-1], context[1:]), (context, aspect[:, 0]),
    ]:  # fmt: skip
        assert abs(np.corrcoef(a, b)[0, 1]) < noise
    # Uniform between its bounds: mean and deviation, up to whole patches.
    assert abs(scale.mean() - 0.2) < 0.005 and abs(scale.std() - 0.1 / math.sqrt(12)) < 0.003
    assert abs(aspect.mean() - 1.125) < 0.01 and abs(aspect.std() - 0.75 / math.sqrt(12)) < 0.01


@pytest.mark.parametrize("grid", [(8, 8), (4, 4), (7, 5), (1, 12), (12, 1)])
def test_masks_are_well_formed(grid):
    masker = MultiBlockMasker(grid, min_context=2)
    masks = masker.sample(500, np.random.default_rng(3))
    rows, columns = set(), set()
    for context, blocks in zip(masks.context, masks.targets):
        assert len(blocks) == 4 and len(context) >= 2
        for block in blocks:
            row, column = np.unique(block // grid[1]), np.unique(block % grid[1])
            rows.update(row.tolist())
            columns.update(column.tolist())
            full = (np.arange(row[0], row[-1] + 1)[:, None] * grid[1] + np.arange(column[0], column[-1] + 1)).ravel()
            np.testing.assert_array_equal(block, full)  # a whole rectangle, ascending
            assert not set(context) & set(block)
        assert (np.diff(context) > 0).all() and context[0] >= 0 and context[-1] < masker.num_patches
    assert rows == set(range(grid[0])) and columns == set(range(grid[1]))  # the last row and column are reached


def test_context_block_is_a_square_of_the_grids_shape_without_targets():
    masker = MultiBlockMasker(target_scale=(0.01, 0.02), context_scale=(0.8, 0.8))  # 7x7 context, one-patch targets
    masks = masker.sample(200, np.random.default_rng(0))
    assert (masks.target_lengths == 1).all()
    corners = set()
    for context, blocks in zip(masks.context, masks.targets):
        top, left = context.min() // 8, (context % 8).min()
        square = {(top + i) * 8 + left + j for i in range(7) for j in range(7)}
        assert set(context.tolist()) == square - {int(block[0]) for block in blocks}
        corners.add((int(top), int(left)))
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_min_context_is_kept_by_drawing_the_whole_image_again():
    plain = MultiBlockMasker(min_context=1).sample(4000, np.random.default_rng(0)).context_lengths
    masker = MultiBlockMasker(min_context=30)
    lengths = masker.sample(1000, np.random.default_rng(0)).context_lengths
    assert (plain < 30).mean() > 0.5 and lengths.min() == 30
    kept = plain[plain >= 30]  # redrawing an image conditions the distribution, and nothing else
    assert abs(lengths.mean() - kept.mean()) < 4.5 * kept.std() * math.sqrt(1 / len(kept) + 1 / 1000)


def test_redrawing_gives_up_with_one_line():
    masker = MultiBlockMasker()
    masker.min_context = 63
    with pytest.raises(ConfigError, match=r"min_context=63.*lower target_scale") as error:
        masker.sample(2, np.random.default_rng(0))
    assert "\n" not in str(error.value)


def test_the_generator_decides_everything_and_lists_survive_a_round_trip():
    masker = MultiBlockMasker()
    a, b, c = (masker.sample(32, np.random.default_rng(seed)) for seed in (5, 5, 6))
    for same in (b, Masks.from_lists(a.context, a.targets)):
        for name in ("context_lengths", "context_index", "target_lengths", "target_index"):
            np.testing.assert_array_equal(getattr(a, name), getattr(same, name))
    assert a.context_index.tolist() != c.context_index.tolist()


def test_an_empty_batch_is_refused():
    with pytest.raises(ConfigError, match="at least 1 image"):
        MultiBlockMasker().sample(0, np.random.default_rng(0))


def test_packed_arrays_hold_the_lists():
    context, targets = [[4, 1], [0, 2, 3]], [[[0], [2, 3]], [[1, 5, 4], [5]]]
    masks = Masks.from_lists(context, targets)
    assert masks.context_lengths.tolist() == [2, 3] and masks.context_index.tolist() == [1, 4, 0, 2, 3]
    assert masks.target_lengths.tolist() == [[1, 2], [3, 1]] and masks.target_index.tolist() == [0, 2, 3, 1, 4, 5, 5]
    assert [block.tolist() for block in masks.context] == [[1, 4], [0, 2, 3]]
    assert [[b.tolist() for b in blocks] for blocks in masks.targets] == [[[0], [2, 3]], [[1, 4, 5], [5]]]
    assert {masks.context_index.dtype, masks.target_lengths.dtype, masks.target_index.dtype} == {np.dtype(np.int64)}
    assert repr(masks) == "<Masks of 2 images: on average 2.5 context patches and 2 target blocks of 1.8>"


@pytest.mark.parametrize(
    "images", [np.array([3, 0, 17, 3]), np.arange(20)[::-1], slice(4, 9), [-1], np.arange(20) % 3 == 0, []], ids=str
)
def test_select_agrees_with_the_lists(images):
    masks = MultiBlockMasker().sample(20, np.random.default_rng(0))
    some = masks.select(images)
    numbers = np.arange(20)[images] if len(np.shape(images)) == 0 or len(images) else np.array([], int)
    assert len(some) == len(numbers) and some.num_targets == 4
    context, targets = masks.context, masks.targets
    for chosen, image in enumerate(numbers):
        np.testing.assert_array_equal(some.context[chosen], context[image])
        for ours, theirs in zip(some.targets[chosen], targets[image]):
            np.testing.assert_array_equal(ours, theirs)
    assert len(some.context_index) == some.context_lengths.sum() and len(some.target_index) == some.target_lengths.sum()


@pytest.mark.parametrize(
    ("context", "targets", "message"),
    [
        ([], [], "for each image, got 0"),
        ([[0]], [[[1]], [[2]]], "got 1 and 2"),
        ([[0], [1]], [[[1]], [[2], [3]]], r"same number of target blocks.*\[1, 2\]"),
        ([[0]], [[]], r"at least 1, got \[0\]"),
        ([[0], []], [[[1]], [[2]]], "context of image 1 is empty"),
        ([[0], [1]], [[[1], [2]], [[2], []]], "target block 1 of image 1 is empty"),
        ([[0, 3, 0]], [[[1]]], "context of image 0 names a patch twice"),
        ([[0.5]], [[[1]]], "whole patch numbers"),
        ([[-1]], [[[1]]], "whole patch numbers"),
        ([[0]], [[1, 2]], "target block 0 of image 0 must be a flat list"),
        ([[[0], [1, 2]]], [[[1]]], "context of image 0 must be a flat list"),
        ([[0]], [1], "list of lists"),
    ],
)
def test_bad_lists_are_refused_in_one_line(context, targets, message):
    with pytest.raises(ConfigError, match=message) as error:
        Masks.from_lists(context, targets)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": (8,)}, "grid"),
        ({"grid": 8}, "grid"),
        ({"grid": (8, 0)}, "grid"),
        ({"grid": (8, 7.5)}, "grid"),
        ({"num_targets": 0}, "num_targets"),
        ({"num_targets": 2.0}, "num_targets"),
        ({"target_scale": 0.2}, "target_scale must be two numbers"),
        ({"target_scale": (0.2, "big")}, "target_scale must be two numbers"),
        ({"target_scale": (0.25, 0.15)}, "target_scale.*low <= high"),
        ({"target_scale": (0.0, 0.15)}, "target_scale.*0 < low"),
        ({"context_scale": (0.9, 1.1)}, "context_scale.*<= 1"),
        ({"target_aspect_ratio": (-1, 2)}, "target_aspect_ratio"),
        ({"target_aspect_ratio": (1, float("inf"))}, "target_aspect_ratio"),
        ({"target_aspect_ratio": (1, float("nan"))}, "target_aspect_ratio"),
        ({"min_context": 0}, "min_context"),
        ({"min_context": True}, "min_context"),
        ({"min_context": 65}, "min_context.*from 1 to 64, the patches"),
        ({"min_context": 60}, "0 of 64 trial masks.*min_context=60.*lower target_scale"),
        ({"num_targets": 60}, "trial masks"),
        ({"target_scale": (0.9, 1.0)}, "trial masks"),
        ({"grid": (1, 1), "min_context": 1}, "0 of 64 trial masks"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        MultiBlockMasker(**settings)
    assert "\n" not in str(error.value)


def test_settings_may_come_from_json():
    masker = MultiBlockMasker(grid=[6, 6], target_scale=[0.15, 0.2], context_scale=[1, 1])
    assert masker.grid == (6, 6) and masker.context_scale == (1.0, 1.0)
    assert masker.sample(3, np.random.default_rng(0)).context_index.max() < 36
