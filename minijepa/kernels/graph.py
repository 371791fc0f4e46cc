"""A training step on a GPU as one CUDA graph: recorded once, replayed for every batch that fits.

A step of the specification's network is about 600 launches. Each costs the host some microseconds, in total more than
the GPU needs for the work; a graph is launched as a whole. It replays frozen addresses, shapes, and numbers passed as
arguments. So

- whatever differs from step to step is in arrays that stay (``FixedLayout``, ``images``, ``scalars``), which are filled
  before the graph is launched;
- every batch has the same number of rows: a capacity that nearly all batches stay below, with spare rows at the end. No
  result is computed from a spare row, so its gradient is zero;
- temporary arrays come from their own memory pool.

A batch beyond the capacity is computed launch by launch, and so are all batches if no graph can be recorded.
"""

import contextlib
import math
import os
import weakref

import numpy as np

from minijepa.backend import rng, xp_of
from minijepa.cli import tell
from minijepa.kernels.launcher import takes
from minijepa.kernels.launches import HEAD_DIMS, WIDEST
from minijepa.kernels.twins import row_lists
from minijepa.models.layout import TokenLayout, row_numbers
from minijepa.models.vit import patchify
from minijepa.ops import Packing, RowIndex
from minijepa.ops.rows import offsets_of

WARM_UP = 3  # steps before recording: they compile kernels, fill the pool, and let libraries allocate what they need
DRAWN = 2048  # images whose masks are used to estimate a batch's rows

enabled = os.environ.get("MINIJEPA_GRAPH", "1") != "0"


def capacity(masker, batch, num_patches):
    """(rows of the context, target patches, distinct ones, rows of the predictor), (longest context, longest sequence).

    A batch's rows are a sum over B images, with mean B μ and deviation √B σ. μ is estimated from n drawn images, so B μ
    has the deviation B σ/√n. Together these are √(B (1 + B/n)) σ; four times that is exceeded once in 30,000 batches.
    """
    masks = masker.sample(DRAWN, rng(0, "capacity of a CUDA graph"))
    context, target = masks.context_lengths, masks.target_lengths.sum(axis=1)
    patches = np.repeat(np.arange(DRAWN), target) * num_patches + masks.target_index
    distinct = np.bincount(np.unique(patches) // num_patches, minlength=DRAWN)
    each = np.stack([context, target, distinct, masks.num_targets * context + target])
    most = batch * np.array([num_patches, num_patches * masks.num_targets, num_patches])
    most = np.append(most, masks.num_targets * most[0] + most[1])
    rows = batch * each.mean(axis=1) + 4 * math.sqrt(batch * (1 + batch / DRAWN)) * each.std(axis=1)
    longest = int(context.max()), int((context[:, None] + masks.target_lengths).max())
    return [int(n) for n in np.minimum(np.ceil(rows), most)], longest


class FixedLayout(TokenLayout):
    """A TokenLayout whose arrays keep their addresses and lengths from batch to batch.

    ``load(masks)`` fills them with one copy. Spare rows name row 0 of their source, are members of no list and belong
    to no sequence. ``count`` is an array on the device, as the losses' kernels take it.
    """

    def __init__(self, masker, batch, num_patches, xp):
        self.num_patches = num_patches
        self.rows, longest = capacity(masker, batch, num_patches)
        context, target, distinct, predictor = self.rows
        sequences = batch * masker.num_targets
        spans = {  # name: (rows, rows of their source, if backward sums over them)
            "context_pixels": (context, None), "context_positions": (context, num_patches),
            "target_rows": (distinct, None), "target_features": (target, None),
            "target_positions": (target, num_patches),
            "predictor_rows": (predictor, context + target), "prediction_rows": (target, predictor),
        }  # fmt: skip
        sizes = {"count": 2, "context_packing": batch + 1, "predictor_packing": sequences + 1}
        self.taken_from = {name: n for name, (_, n) in spans.items() if n}
        for name, (rows, n) in spans.items():
            sizes[name] = rows
            if n:
                sizes[f"{name} starts"], sizes[f"{name} members"] = n + 1, rows
        ends = np.cumsum(list(sizes.values())).tolist()
        self.places = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends)}
        self.device = xp.zeros(ends[-1], np.int32)

        view = {name: self.device[place] for name, place in self.places.items()}
        indices = {
            name: _FixedIndex(view[name], {n: [view[f"{name} starts"], view[f"{name} members"]]} if n else {})
            for name, (_, n) in spans.items()
        }
        super().__init__(
            view["count"], Packing([num_patches] * batch), **indices,
            context_packing=_FixedPacking(view["context_packing"], context, longest[0]),
            predictor_packing=_FixedPacking(view["predictor_packing"], predictor, longest[1]),
        )  # fmt: skip

    def load(self, masks):
        """Fill the arrays for a batch. False, with nothing done, if it has too many rows."""
        numbers = row_numbers(masks, self.num_patches, context_capacity=self.rows[0])
        used = numbers.context_pixels, numbers.target_features, numbers.target_rows, numbers.predictor_rows
        if any(len(n) > rows for n, rows in zip(used, self.rows)):
            return False
        host = np.zeros(self.device.size, np.int32)

        def put(name, values):
            host[self.places[name]][: len(values)] = values

        put("count", [len(masks.target_index)] * 2)
        for name, values in vars(numbers).items():
            put(name, offsets_of(values) if name.endswith("packing") else values)
        for name, n in self.taken_from.items():
            starts, members = row_lists(getattr(numbers, name), n)
            put(f"{name} starts", starts)
            put(f"{name} members", members)
        self.device[...] = xp_of(self.device).asarray(host)
        return True


class _FixedIndex(RowIndex):
    """Row numbers that are already on the device."""

    def __init__(self, array, lists):
        self.array = self.int32 = array
        self.lists = lists


class _FixedPacking(Packing):
    """What attention's kernels need of a packing. ``longest`` suits nearly all sequences."""

    def __init__(self, offsets, rows, longest):
        self.device_offsets, self.total, self.longest = offsets, rows, longest


class StepGraph:
    """A step on the device, as a graph from the fourth call on."""

    def __init__(self, trainer):
        model, config = trainer.model, trainer.config
        self.model, self.lanes, self.update = model, trainer.lanes, trainer.update
        self.xp = xp_of(model.flat.data)
        xp = self.xp
        self.pool = xp.cuda.MemoryPool()
        self.layout = FixedLayout(trainer.masker, trainer.batch_size, config.num_patches, xp)
        self.images = xp.empty((trainer.batch_size, *trainer.images.shape[1:]), model.dtype)
        self.scalars = xp.empty(5, np.float32)  # AdamW's three and the EMA's two
        self.results = xp.empty(2, np.float32)  # loss, norm of the gradient
        self.calls, self.graph, self.usable = 0, None, True
        # CuPy's pools don't free their memory when they are deleted
        weakref.finalize(self, self.pool.free_all_blocks).atexit = False

    @classmethod
    def of(cls, trainer):
        """A StepGraph, or None if the kernels can't do the whole step."""
        config, flat = trainer.config, trainer.model.flat
        widths = config.encoder_embed_dim, config.predictor_embed_dim
        heads = config.encoder_num_heads, config.predictor_num_heads
        kernels_do = all(w <= WIDEST and w // h in HEAD_DIMS for w, h in zip(widths, heads))
        kernels_do &= config.loss in ("l2", "smooth_l1")  # whose twins take a count that is on the device
        aligned = takes(flat.data, flat.grad, *(parameter.data for parameter in flat.parameters.values()))
        return cls(trainer) if enabled and kernels_do and aligned else None

    def __call__(self, step, images, masks, scalars, momentum):
        """The loss and the gradient's norm, as arrays; None, with nothing done, if no graph can be recorded."""
        if not self.usable:
            return None
        xp = self.xp
        self.images[...] = images
        self.scalars[...] = xp.asarray(np.array([*scalars, momentum, 1 - momentum], np.float32))
        if not self.layout.load(masks):
            self._step(step, TokenLayout.of(masks, self.layout.num_patches, "cuda"))
            self.graph = None  # where memory is short, the pool may have given back what it names
        elif self.calls < WARM_UP:
            self._step(step, self.layout)
            self.calls += 1
        elif self.graph or self._record(step):
            self.graph.launch()
        else:
            return None
        results = self.results.copy()
        return results[0], results[1]

    def _step(self, step, layout):
        """The step on the arrays that stay, in the graph's memory: batches that don't fit the graph use it too."""
        with self.xp.cuda.using_allocator(self.pool.malloc):
            loss = self.lanes.in_one_chunk(patchify(self.images, self.model.config.patch_size), layout)
            self.results[0] = loss
            self.results[1] = self.update(step, loss, self.scalars[:3], self.scalars[3:])

    def _record(self, step):
        """Record the graph, without computing anything. False, with a message to the user, if that fails."""
        stream = self.xp.cuda.get_current_stream()
        try:
            stream.begin_capture()
            self._step(step, self.layout)
            self.graph = stream.end_capture()
            self.graph.upload()  # here, where an error is told, and not at the first launch
        except Exception as error:  # from CuPy or cuBLAS; whatever it is, steps work without a graph
            with contextlib.suppress(Exception):
                stream.end_capture()
            self.graph, self.usable = None, False
            tell(f"no CUDA graph, so steps are slower: {type(error).__name__}: {error}")
        if not self.usable:
            self.pool.free_all_blocks()  # here, when the error's traceback no longer holds arrays
        return self.usable
