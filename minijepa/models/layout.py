"""Where each token of a batch stands in the packed matrices (see ``ops.attention``): index arithmetic, made once."""

import numpy as np

from minijepa.backend import to_device
from minijepa.errors import ShapeError
from minijepa.ops import Packing, RowIndex
from minijepa.ragged import ranges, starts_of


class TokenLayout:
    """The row numbers that turn a batch's masks into packed sequences.

    With images of N patches, Tc context patches and Tt target patches in the whole batch:

    - ``context_pixels`` (Tc,): rows of the (B N) patches that the context encoder sees; ``context_positions`` (Tc,)
      their places in the image; ``context_packing``: one sequence per image.
    - ``target_rows`` (≤ B N,): the patches, of all B N, that stand in a target block at least once; ``target_features``
      (Tt,): which of these; ``target_positions`` (Tt,): their places in the image.
    - ``predictor_rows`` (Tp,): for each sequence (image, block) the rows of [context ; mask tokens] that it is made of;
      ``predictor_packing``: one sequence per block; ``prediction_rows`` (Tt,): where its mask tokens stand.

    Targets and predictions are in the order of the masks: image by image, block by block. Sequences, whose order nobody
    sees, are sorted by length, so that attention meets long runs of equal length.
    """

    def __init__(self, masks, num_patches, device="cpu"):
        for index in (masks.context_index, masks.target_index):
            if not 0 <= index.min() <= index.max() < num_patches:
                raise ShapeError(f"the masks name patches {index.min()} to {index.max()} of {num_patches}, from 0 up")
        lengths, blocks = masks.context_lengths.astype(np.int64), masks.target_lengths.astype(np.int64)
        batch, per_image = blocks.shape
        image = np.arange(batch)
        self.batch = batch

        order = np.argsort(lengths, kind="stable")
        picked = ranges(starts_of(lengths)[order], lengths[order])  # the context patches, in the sorted order
        context_start = np.empty(batch, np.int64)
        context_start[order] = starts_of(lengths[order])
        self.context_packing = Packing(lengths[order])
        context_positions = masks.context_index[picked]
        context_pixels = np.repeat(image[order], lengths[order]) * num_patches + context_positions

        target_positions = masks.target_index
        covered = np.repeat(image, blocks.sum(axis=1)) * num_patches + target_positions
        is_covered = np.zeros(batch * num_patches, bool)
        is_covered[covered] = True
        target_features = (np.cumsum(is_covered) - 1)[covered]

        of_image = np.repeat(image, per_image)  # the image of each (image, block) sequence
        contexts, blocks = lengths[of_image], blocks.ravel()
        order = np.argsort(contexts + blocks, kind="stable")
        self.predictor_packing = Packing((contexts + blocks)[order])
        mask_start = lengths.sum() + starts_of(blocks)  # mask tokens stand behind all context tokens
        starts = np.stack([context_start[of_image], mask_start], axis=1)[order]
        pieces = np.stack([contexts, blocks], axis=1)[order]
        predictor_rows = ranges(starts.ravel(), pieces.ravel())
        sequence_start = np.empty(len(order), np.int64)
        sequence_start[order] = self.predictor_packing.offsets[:-1]
        prediction_rows = ranges(sequence_start + contexts, blocks)

        self.context_pixels = to_device(context_pixels, device)
        self.context_positions = RowIndex(context_positions, device)
        self.target_rows = to_device(np.flatnonzero(is_covered), device)
        self.target_features = to_device(target_features, device)
        self.target_positions = RowIndex(target_positions, device)
        self.predictor_rows = RowIndex(predictor_rows, device)
        self.prediction_rows = RowIndex(prediction_rows, device)

    @classmethod
    def of(cls, masks, num_patches, device="cpu"):
        """The layout of ``masks``, which may be a layout already."""
        return masks if isinstance(masks, cls) else cls(masks, num_patches, device)
