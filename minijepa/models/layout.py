"""Where each token of a batch is in the packed matrices (see ``ops.attention``): index arithmetic, made once."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from minijepa.errors import ShapeError
from minijepa.ops import Packing, RowIndex
from minijepa.ops.rows import ranges, starts_of


@dataclass(eq=False)
class TokenLayout:
    """The row numbers that turn a batch's masks into packed sequences.

    B images of N patches have Tc context patches and Tt target patches in all. Targets and predictions are in the order
    of the masks: image by image, block by block. Sequences are sorted by length, so that attention gets long runs of
    equal length; their order affects no result.
    """

    count: int  # Tt
    image_packing: Packing  # whole images, as the target encoder sees them: B sequences of N

    context_pixels: RowIndex  # (Tc,) rows of the (B N) patches that the context encoder sees
    context_positions: RowIndex  # (Tc,) their places in the image
    context_packing: Packing  # a sequence for each image

    target_rows: RowIndex  # (≤ B N,) those of the B N patches that are in at least one target block
    target_features: RowIndex  # (Tt,) which of these
    target_positions: RowIndex  # (Tt,) their places in the image

    predictor_rows: RowIndex  # (Tp,) of each sequence: its rows of [context ; mask tokens]
    predictor_packing: Packing  # a sequence for each target block
    prediction_rows: RowIndex  # (Tt,) where the mask tokens are in these sequences

    @classmethod
    def of(cls, masks, num_patches, device="cpu"):
        """The layout of ``masks``, with its arrays on ``device``."""
        numbers = vars(row_numbers(masks, num_patches))
        made = {k: Packing(v) if k.endswith("packing") else RowIndex(v, device) for k, v in numbers.items()}
        return cls(len(masks.target_index), Packing([num_patches] * len(masks)), **made)


def row_numbers(masks, num_patches, context_capacity=None):
    """The arrays of a TokenLayout on the host; for packings, the lengths.

    ``context_capacity``: rows that the context takes in [context ; mask tokens], if more than Tc.
    """
    if not len(masks):
        raise ShapeError("the network needs at least one image")
    for index in (masks.context_index, masks.target_index):
        if not 0 <= index.min() <= index.max() < num_patches:
            raise ShapeError(f"the masks name patches {index.min()} to {index.max()} of 0 to {num_patches - 1}")
    lengths, blocks = masks.context_lengths, masks.target_lengths.ravel()
    image = np.repeat(np.arange(len(masks)), masks.target_lengths.shape[1])  # of each target block
    n = SimpleNamespace()

    order = np.argsort(lengths, kind="stable")
    picked = ranges(starts_of(lengths)[order], lengths[order])  # the context patches, in the sorted order
    context_start = starts_of(lengths[order])[np.argsort(order)]  # of each image: argsort undoes the sorting
    n.context_packing = lengths[order]
    n.context_positions = masks.context_index[picked]
    n.context_pixels = np.repeat(order, lengths[order]) * num_patches + n.context_positions

    n.target_positions = masks.target_index
    covered = np.repeat(image, blocks) * num_patches + n.target_positions
    is_target = np.bincount(covered) > 0
    n.target_rows = np.flatnonzero(is_target)
    n.target_features = (np.cumsum(is_target) - 1)[covered]

    contexts = lengths[image]  # each target block is a sequence with the context of its image
    order = np.argsort(contexts + blocks, kind="stable")
    n.predictor_packing = (contexts + blocks)[order]
    mask_start = (context_capacity or lengths.sum()) + starts_of(blocks)  # mask tokens come after all context tokens
    starts = np.stack([context_start[image], mask_start], axis=1)[order]
    pieces = np.stack([contexts, blocks], axis=1)[order]
    n.predictor_rows = ranges(starts.ravel(), pieces.ravel())
    sequence_start = starts_of(n.predictor_packing)[np.argsort(order)]
    n.prediction_rows = ranges(sequence_start + contexts, blocks)
    return n
