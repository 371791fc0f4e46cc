"""Forward and backward of one batch, in chunks, by several workers."""

import weakref

import numpy as np

from minijepa.autograd import Tape
from minijepa.backend import row_blocks
from minijepa.backend.processes import CAN_FORK, Workers, shared
from minijepa.backend.threads import on_threads, worker_threads
from minijepa.errors import TrainingError
from minijepa.tensor import Tensor

# Images a chunk: smaller ones lose time in calls into NumPy; larger ones need memory (measured: docs/performance.md).
SMALLEST, LARGEST = 16, 32
LANES = 8  # as many as there can be workers or ranks; each needs a vector of gradients


class LeanTape(Tape):
    """A tape that keeps only the shapes of recorded values: what no operation saved is freed during forward.

    It saves a fifth of a process's memory. Errors that print values, and anything that reads a tape's entries, need a
    :class:`Tape`.
    """

    def record(self, entry):
        super().record(entry)
        entry.inputs = [x if x is None or x._mark is None else x._outline for x in entry.inputs]
        entry.output._outline = entry.output = _outline(entry.output)

    def backward(self, loss, cotangent=None):
        super().backward(getattr(loss, "_outline", loss), cotangent)


def _outline(tensor):
    """A tensor of the same shape, dtype and tape that has a single zero in memory: what the entries keep of it."""
    zero = np.zeros((), tensor.dtype)
    outline = Tensor(np.ndarray(tensor.shape, tensor.dtype, zero, strides=(0,) * tensor.ndim), requires_grad=True)
    outline._mark = tensor._mark
    return outline


class Lanes:
    """Computes a batch's loss and gradient; on a CPU, with the same bits for every number of workers.

    A sum of floats depends on its order, so the order must not depend on the workers: chunk i of the batch belongs to
    lane i mod 8, a lane adds its chunks' gradients to its own vector in order, and the lanes are added in order.
    Workers only pick up whole lanes, and so do the ranks of a run under mpiexec. Several workers are processes, forked
    by the first batch, so change the model before that; with several ranks, or where processes can't be forked, they
    are threads. For processes the weights move to shared memory: make an optimiser after this. On a GPU there is one
    chunk, the whole batch.
    """

    def __init__(self, model, workers, ranks=None):
        self.model, self.workers, self.ranks = model, workers, ranks or Alone()
        self.reached = set()  # names of parameters that ever received a gradient
        if model.device == "cpu":
            own = range(self.ranks.rank, LANES, self.ranks.size)
            self.vectors = {lane: shared(np.zeros_like(model.flat.data)) for lane in own}
            self.views = {lane: model.flat.views(vector) for lane, vector in self.vectors.items()}
            if workers == 1:
                self.map = lambda items: [self._lane(item) for item in items]
            elif CAN_FORK and self.ranks.size == 1:
                model.flat.share()
                model.target_flat.share()
                lane = weakref.WeakMethod(self._lane)  # no cycle: the workers end as soon as nobody needs this object
                self.map = Workers(lambda item: lane()(item), min(workers, LANES)).map
            else:
                self.map = lambda items: on_threads(self._lane, items, workers)

    def __reduce_ex__(self, protocol):  # what copy, deepcopy and pickle ask for
        raise TrainingError("a Trainer can't be copied: its workers compute for the original; copy trainer.model")

    def gradients(self, images, masks):
        """Put the gradient of the loss over (images, masks) into ``model.flat.grad``; return the loss.

        A float; on a GPU a 0-d array, not synchronised.
        """
        model, ranks = self.model, self.ranks
        if model.device == "cuda":
            return self.in_one_chunk(*model.prepare(images, masks))
        count = len(masks.target_index)
        chunks = chunks_of(masks.context_lengths)
        used = min(LANES, len(chunks))
        results = self.map([
            (lane, count, [(images[chunk], masks.select(chunk)) for chunk in chunks[lane::LANES]])
            for lane in range(ranks.rank, used, ranks.size)
        ])  # fmt: skip
        self.reached.update(*(reached for _, reached in results))
        return ranks.sum_lanes(self.vectors, [loss for loss, _ in results], used, model.flat.grad)

    def in_one_chunk(self, patches, layout):
        """The same on a GPU, from the results of ``IJEPA.prepare``."""
        self.model.zero_grad()
        tape = Tape()
        loss = self._chunk(patches, layout, layout.count, tape)
        self.reached |= _names(tape, self.model.flat.parameters)
        return loss.data

    def _lane(self, item):
        """Put the gradient of a lane's chunks into its vector: (their loss, the names of the parameters reached)."""
        lane, count, chunks = item
        loss, reached = 0.0, set()
        self.vectors[lane][...] = 0
        with np.errstate(all="ignore"):  # a loss that is not finite is reported by the trainer, in one line
            for images, masks in chunks:
                tape = LeanTape(self.views[lane])
                loss += self._chunk(*self.model.prepare(images, masks), count, tape).item()
                reached |= _names(tape, self.model.flat.parameters)
        return loss, reached

    def _chunk(self, patches, layout, count, tape):
        """One chunk forward and backward; its part of the loss."""
        model = self.model
        targets = model.targets_of(patches, layout)  # the stop-gradient: no tape runs here
        with tape:
            loss = model.distance(model.predictions_of(patches, layout), targets, count)
        tape.backward(loss)
        return loss


class Alone:
    """What the processes, or ranks, of a run do together, if there is only one; ``mpi.Ranks`` is for several."""

    rank, size = 0, 1

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def threads(self, requested):
        """The number of this process's workers."""
        return worker_threads(requested)

    def first(self, function):
        """``function()``, called only by rank 0: its result, or its error, on all ranks."""
        return function()

    def each(self, function):
        """``function()``, called by rank 0 and then by all others; one rank's error is raised on all."""
        return function()

    def gather(self, value):
        """The values of all ranks, in order."""
        return [value]

    def share(self, *arrays):
        """Overwrite the other ranks' arrays with rank 0's."""

    def difference(self, facts):
        """The first difference of a rank's ``facts()``, {name: value}, from rank 0's, in words; "" if there is none."""
        return ""

    def sum_lanes(self, vectors, losses, used, total):
        """total = Σ of the gradients of lanes 0 to ``used``, in order; returns the sum of their losses.

        ``vectors``: {lane: gradient} of this rank's lanes, which are rank, rank + size, ...; ``losses``: theirs.
        """
        add_in_order([vectors[lane] for lane in range(used)], total)
        return sum(losses)


def add_in_order(vectors, total):
    """total = Σ vectors, added in order, a cache-sized block at a time."""
    with np.errstate(all="ignore"):  # see _lane
        for total_, first, *others in row_blocks(*(vector[:, None] for vector in (total, *vectors))):
            total_[...] = first
            for other in others:
                total_ += other


def _names(tape, parameters):
    """The names of the leaves that received a gradient; None for one that is not among the model's ``parameters``."""
    named = ((getattr(leaf, "name", None), leaf) for leaf in tape.reached)
    return {name if parameters.get(name) is leaf else None for name, leaf in named}


def chunks_of(context_lengths):
    """The image numbers of each chunk. Attention works on runs of equal length, so a chunk takes images of similar
    context length: half of it long and half short, so that all chunks take about the same time."""
    size = min(max(len(context_lengths) // LANES, SMALLEST), LARGEST)
    order = np.argsort(-context_lengths, kind="stable")
    count = -(-len(order) // size)
    halves = np.array_split(order, 2 * count)  # the longest contexts first
    return [np.concatenate(pair) for pair in zip(halves[:count], reversed(halves[count:]))]
