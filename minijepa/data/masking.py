"""Multi-block masks: which patches the context encoder sees and which ones the predictor must predict.

Patches are numbered row by row: the patch in row r and column c of an (H, W) grid is number r·W + c.
"""

from dataclasses import dataclass

import numpy as np

from minijepa.errors import ConfigError
from minijepa.ops.rows import ranges, starts_of

TRIALS = 64  # masks that a new masker draws to see whether its settings are possible
TRIALS_NEEDED = 4  # ... and how many of them must have min_context patches
MAX_ROUNDS = 1000  # settings that passed the trials need far fewer
_possible = set()  # settings that passed: tried once per process
REMEDY = "lower target_scale, the number of target blocks or min_context, or raise context_scale"


@dataclass(frozen=True, eq=False, repr=False)
class Masks:
    """The masks of a batch of B images with M target blocks each, packed: no padding, whatever the lengths.

    All arrays are int64.

        context_lengths  (B,)     context patches of each image
        context_index    (sum,)   their numbers, image by image, ascending in each image
        target_lengths   (B, M)   patches of each target block
        target_index     (sum,)   their numbers, image by image, block by block, ascending in each block

    Blocks of an image may overlap. `len(masks)` is B. The constructor trusts its arguments; `Masks.from_lists` checks.
    """

    context_lengths: np.ndarray
    context_index: np.ndarray
    target_lengths: np.ndarray
    target_index: np.ndarray

    @classmethod
    def from_lists(cls, context, targets):
        """Masks made by hand: `context[b]` and `targets[b][m]` are sequences of patch numbers, in any order.

        Raises ConfigError for an empty or repetitive sequence, anything but whole numbers from 0 up, and images with
        different numbers of target blocks.
        """
        try:
            context, targets = list(context), [list(blocks) for blocks in targets]
        except TypeError:
            raise ConfigError("masks need a list of contexts and a list of lists of target blocks") from None
        if not context or len(context) != len(targets):
            raise ConfigError(f"masks need a context and blocks for each image, got {len(context)} and {len(targets)}")
        counts = sorted({len(blocks) for blocks in targets})
        if len(counts) > 1 or counts[0] == 0:
            raise ConfigError(f"every image needs the same number of target blocks, at least 1, got {counts}")
        context = [_patch_numbers(block, f"context of image {b}") for b, block in enumerate(context)]
        blocks = [
            _patch_numbers(block, f"target block {m} of image {b}")
            for b, image_blocks in enumerate(targets)
            for m, block in enumerate(image_blocks)
        ]
        return cls(
            np.array([len(block) for block in context]),
            np.concatenate(context),
            np.array([len(block) for block in blocks]).reshape(len(context), -1),
            np.concatenate(blocks),
        )

    def __len__(self):
        return len(self.context_lengths)

    @property
    def num_targets(self):
        """M, the number of target blocks of each image."""
        return self.target_lengths.shape[1]

    @property
    def context(self):
        """A list of B ascending index arrays."""
        return np.split(self.context_index, np.cumsum(self.context_lengths)[:-1])

    @property
    def targets(self):
        """A list of B lists of M ascending index arrays."""
        blocks = np.split(self.target_index, np.cumsum(self.target_lengths)[:-1])
        return [blocks[b * self.num_targets : (b + 1) * self.num_targets] for b in range(len(self))]

    def select(self, images):
        """The masks of some of the images, in the order of `images` (an index array, or a slice)."""
        images = np.arange(len(self))[images]
        lengths, blocks = self.context_lengths, self.target_lengths
        targets = blocks.sum(axis=1)  # the blocks of an image are contiguous, so its targets are one range too
        context_rows = ranges(starts_of(lengths)[images], lengths[images])
        target_rows = ranges(starts_of(targets)[images], targets[images])
        return Masks(lengths[images], self.context_index[context_rows], blocks[images], self.target_index[target_rows])

    def __repr__(self):
        context, target = self.context_lengths.mean(), self.target_lengths.mean()
        return (
            f"<Masks of {len(self)} images: on average {context:.1f} context patches "
            f"and {self.num_targets} target blocks of {target:.1f}>"
        )


def _patch_numbers(block, name):
    """`block` as an ascending int64 array, or ConfigError."""
    try:
        array = np.asarray(block)
    except ValueError:  # lists of different lengths
        array = None
    if array is not None and array.size == 0:
        raise ConfigError(f"the {name} is empty: every image needs a context patch, and every target block too")
    if array is None or array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0:
        raise ConfigError(f"the {name} must be a flat list of whole patch numbers from 0 up, got {block!r}")
    unique = np.unique(array)
    if len(unique) != len(array):
        raise ConfigError(f"the {name} names a patch twice: {block!r}")
    return unique.astype(np.int64)


def block_size(scale, aspect_ratio, grid):
    """Height and width, in patches, of a block that covers `scale` of the (H, W) grid, with width / height = aspect.

        n = ⌊H·W·scale⌋,   height = round(√(n / aspect)),   width = round(height · aspect),   both clamped to the grid

    Width follows from the rounded height, so that a block keeps its shape rather than its area. `round` rounds halves
    to even. Works element by element on arrays.
    """
    num_patches = np.floor(grid[0] * grid[1] * np.asarray(scale))
    height = np.rint(np.sqrt(num_patches / aspect_ratio))
    width = np.rint(height * aspect_ratio)
    return np.clip(height, 1, grid[0]).astype(np.int64), np.clip(width, 1, grid[1]).astype(np.int64)


class MultiBlockMasker:
    """Draws I-JEPA's masks: for each image, M target blocks and the context, one large block without their patches.

    Scales are fractions of the grid's area, aspect ratios width / height; both are drawn uniformly and independently
    for each block. The context block has aspect ratio 1. A corner is uniform over all places where its block fits. If
    fewer than `min_context` context patches are left (target blocks can cover the grid), all of the image's masks are
    drawn again.

    Raises ConfigError for settings that are out of range or that nearly always miss `min_context`.

    Source: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture", 2023,
    section 3 and appendix A.
    """

    def __init__(
        self,
        grid=(8, 8),
        num_targets=4,
        target_scale=(0.15, 0.25),
        target_aspect_ratio=(0.75, 1.5),
        context_scale=(0.75, 0.95),
        min_context=4,
    ):
        if not isinstance(grid, tuple | list) or len(grid) != 2 or not all(_is_count(size) for size in grid):
            raise ConfigError(f"grid must be two whole numbers of patches, (rows, columns), got {grid!r}")
        if not _is_count(num_targets):
            raise ConfigError(f"num_targets must be a whole number, at least 1, got {num_targets!r}")
        self.grid = tuple(grid)
        self.num_patches = grid[0] * grid[1]
        self.num_targets = num_targets
        self.target_scale = checked_range("target_scale", target_scale, 1.0)
        self.target_aspect_ratio = checked_range("target_aspect_ratio", target_aspect_ratio, np.inf)
        self.context_scale = checked_range("context_scale", context_scale, 1.0)
        self.min_context = min_context
        if not _is_count(min_context) or min_context > self.num_patches:
            wanted = f"a whole number from 1 to {self.num_patches}, the patches of the grid"
            raise ConfigError(f"min_context must be {wanted}, got {min_context!r}")

        settings = self.grid, num_targets, self.target_scale, self.target_aspect_ratio, self.context_scale, min_context
        if settings not in _possible:
            self._try()
            _possible.add(settings)

    @classmethod
    def of(cls, config):
        """The masker of a Config."""
        return cls(
            config.grid, config.num_target_blocks, config.target_scale, config.target_aspect_ratio,
            config.context_scale, config.min_context,
        )  # fmt: skip

    def _try(self):
        """Raise ConfigError if hardly any of some trial masks leaves enough context."""
        context, _ = self._draw(TRIALS, np.random.default_rng(0))
        reached = np.count_nonzero(context.sum(axis=1) >= self.min_context)
        if reached < TRIALS_NEEDED:
            raise ConfigError(
                f"only {reached} of {TRIALS} trial masks leave min_context={self.min_context} context patches "
                f"({context.sum() / TRIALS:.1f} on average): {REMEDY}"
            )

    def sample(self, batch_size, rng):
        """`Masks` of `batch_size` images, drawn from `rng`, a `numpy.random.Generator`."""
        if batch_size < 1:
            raise ConfigError(f"masks need a batch of at least 1 image, got {batch_size}")
        context, targets = self._draw(batch_size, rng)
        for _ in range(MAX_ROUNDS):
            poor = np.flatnonzero(context.sum(axis=1) < self.min_context)
            if poor.size == 0:
                return Masks(*_pack(context), *_pack(targets))
            context[poor], targets[poor] = self._draw(poor.size, rng)
        raise ConfigError(f"an image had less than min_context={self.min_context} in {MAX_ROUNDS} rounds: {REMEDY}")

    def _draw(self, batch_size, rng):
        """One draw per image, however little context is left: membership (B, N) and (B, M, N), bool."""
        targets = self._blocks((batch_size, self.num_targets), self.target_scale, self.target_aspect_ratio, rng)
        context = self._blocks((batch_size,), self.context_scale, (1.0, 1.0), rng)
        context &= ~targets.any(axis=1)
        return context, targets

    def _blocks(self, shape, scale, aspect_ratio, rng):
        """An array of `shape` blocks, as membership: bool, `shape` + (N,)."""
        height, width = block_size(rng.uniform(*scale, shape), rng.uniform(*aspect_ratio, shape), self.grid)
        rows = _runs(height, self.grid[0], rng)
        columns = _runs(width, self.grid[1], rng)
        return (rows[..., :, None] & columns[..., None, :]).reshape(*shape, self.num_patches)


def _runs(length, size, rng):
    """Membership (..., size) of runs of `length` (...) neighbours, each at a uniformly random place where it fits."""
    start = rng.integers(0, size - length, endpoint=True)[..., None]
    place = np.arange(size)
    return (place >= start) & (place < start + length[..., None])


def _pack(membership):
    """Membership (..., N) as lengths (...) and the packed numbers of the members."""
    return np.count_nonzero(membership, axis=-1), np.flatnonzero(membership) % membership.shape[-1]


def _is_count(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1


def checked_range(name, bounds, largest):
    """`bounds` as a tuple of floats (low, high) with 0 < low <= high <= largest, or ConfigError."""
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be two numbers, (low, high), got {bounds!r}") from None
    if not (0 < low <= high <= largest and high < np.inf):
        limit = f" <= {largest:g}" if largest < np.inf else ""
        raise ConfigError(f"{name} must be (low, high) with 0 < low <= high{limit}, got {bounds!r}")
    return low, high
