"""Forward and backward of one batch, in chunks, on worker threads."""

import numpy as np

from minijepa.autograd import Tape
from minijepa.backend import BLOCK
from minijepa.backend.threads import on_threads

CHUNK_IMAGES = 16  # so few that what one operation hands to the next is still in the cache
LANES = 8


class Lanes:
    """Computes a batch's loss and gradient; on a CPU, with the same bits for every number of threads.

    A sum of floats depends on its order, so the order must not depend on the threads: chunk i of the batch belongs to
    lane i mod 8, a lane adds its chunks' gradients into its own vector one after another, and the lanes are added in
    order. Threads merely pick up whole lanes. On a GPU there is one chunk, the whole batch.
    """

    def __init__(self, model, threads):
        self.model, self.threads = model, threads
        if model.device == "cpu":
            self.vectors = [np.zeros_like(model.flat.data) for _ in range(LANES)]
            self.views = [model.flat.views(vector) for vector in self.vectors]
        self.reached = set()  # parameters that ever received a gradient

    def gradients(self, images, masks):
        """Put the gradient of the loss over (images, masks) into ``model.flat.grad``; return the loss.

        A float; on a GPU a 0-d array, not synchronised.
        """
        model = self.model
        if model.device == "cuda":
            return self.in_one_chunk(*model.prepare(images, masks))
        count = len(masks.target_index)

        # Images with contexts of similar length into one chunk: attention works on runs of equal length. The longest
        # go first, so that the threads end at about the same time.
        order = np.argsort(-masks.context_lengths.astype(np.int64), kind="stable")
        chunks = [order[i : i + CHUNK_IMAGES] for i in range(0, len(order), CHUNK_IMAGES)]

        def run(lane):
            self.vectors[lane][...] = 0
            with np.errstate(all="ignore"):  # a loss that is not finite is reported by the trainer, in one line
                return sum(
                    self._chunk(*model.prepare(images[chunk], masks.select(chunk)), count, self.views[lane]).item()
                    for chunk in chunks[lane::LANES]
                )

        used = range(min(LANES, len(chunks)))
        loss = sum(on_threads(run, used, self.threads))
        self._add_up(self.vectors[: len(used)])
        return loss

    def in_one_chunk(self, patches, layout):
        """The same on a GPU, of what ``IJEPA.prepare`` gave."""
        self.model.zero_grad()
        return self._chunk(patches, layout, layout.count, into=None).data

    def _add_up(self, vectors):
        """flat.grad = Σ vectors, in their order at every place; a block of places at a time, which fits the cache."""
        total = self.model.flat.grad

        def add(start):
            block = slice(start, start + BLOCK)
            total[block] = vectors[0][block]
            with np.errstate(all="ignore"):  # see run
                for vector in vectors[1:]:
                    total[block] += vector[block]

        on_threads(add, range(0, total.size, BLOCK), self.threads)

    def _chunk(self, patches, layout, count, into):
        """One chunk forward and backward; its part of the loss."""
        model = self.model
        targets = model.targets_of(patches, layout)  # no tape here: no gradient can flow
        with Tape(into=into) as tape:
            loss = model.distance(model.predictions_of(patches, layout), targets, count)
        tape.backward(loss)
        self.reached |= tape.reached
        return loss
