"""Training: a model, its optimiser and its data; one step reads like the specification's section 8."""

import math
import zlib

import numpy as np

from minijepa.backend import rng, to_device, use_own_stream, xp_of
from minijepa.cli import counted
from minijepa.data import MultiBlockMasker, augment, draw_windows, resized_crop, training_images
from minijepa.errors import TrainingError
from minijepa.evaluation.monitors import Monitors
from minijepa.models import IJEPA
from minijepa.training import checkpoint
from minijepa.training.ema import ema_momentum, update_ema
from minijepa.training.lanes import Alone, Lanes
from minijepa.training.metrics import on_host
from minijepa.training.optim import AdamW, learning_rate, squared_norm

READ_EVERY = 50  # steps: on a GPU, values are read in batches, because each read blocks until the GPU catches up
REMEDY = "try a lower --lr or a longer warmup_epochs"


class Trainer:
    """A model in training. Every random draw is a function of (seed, purpose, step), so a step can be repeated.

    ``threads``: workers on a CPU; the first step forks them, so change the model before it. ``dtype``: float32; float64
    for tests that compare numbers. ``ranks``: the processes that share this training, if there are several.
    """

    def __init__(self, config, dataset, device="cpu", threads=1, dtype=np.float32, ranks=None):
        self.config, self.dataset, self.device = config, dataset, device
        if device == "cuda":
            use_own_stream()  # from the start: memory of one stream does not serve another
        images, labels, val_images, val_labels = training_images(config, dataset)
        self.images = to_device(images, device)
        self.data = {"dataset": dataset.name, "images": len(images), "crc32": zlib.crc32(np.ascontiguousarray(images))}
        self.model = IJEPA(config, config.seed, device, dtype)
        self.model.mean, self.model.std = dataset.mean, dataset.std
        self.masker = MultiBlockMasker.of(config)
        self.ranks = ranks or Alone()
        self.lanes = Lanes(self.model, threads, self.ranks)
        self.optimizer = AdamW(  # after the lanes, which may have moved the weights
            self.model.flat.data, self.model.flat.grad, self.model.decayed, config.weight_decay,
            config.adam_beta1, config.adam_beta2, config.adam_eps,
        )  # fmt: skip
        self.batch_size = min(config.batch_size, len(images))
        self.steps_per_epoch = len(images) // self.batch_size  # a last short batch is dropped
        self.total_steps = self.steps_per_epoch * config.epochs
        self.graph = _step_graph(self) if device == "cuda" else None
        self.monitors = Monitors(self.model, self.masker, images, labels, val_images, val_labels, threads)
        self.progress = checkpoint.Progress()
        self.order = None, None  # an epoch and the order of its images
        self.steps = []  # rows for steps.csv that are not written yet
        self.unread = []  # (step, results) that are not in progress.sums yet

    def train_step(self, step):
        """One step of the specification's section 8. Returns the values that the epoch's row of metrics averages.

        On a GPU, loss and norm are arrays there, not synchronised; :meth:`read` checks them later.
        """
        self._use_own_stream()
        self.model.flat.check_tied()
        self.model.target_flat.check_tied()
        images, masks = self.batch(step)
        scalars, momentum = self.optimizer.begin_step(step, self.learning_rate(step)), self.momentum(step)
        done = None if self.graph is None else self.graph(step, images, masks, scalars, momentum)
        if done is None:  # on a CPU, or if no graph can be recorded
            loss = self.lanes.gradients(images, masks)  # targets, predictions, loss, backward
            done = loss, self.update(step, loss, scalars, momentum)
        return {
            "loss": done[0],
            "grad_norm": done[1],
            "context_tokens": len(masks.context_index) / len(masks),
            "target_tokens": len(masks.target_index) / len(masks),
        }

    def _use_own_stream(self):
        """Graphs run on our own stream; the thread's current one may have changed."""
        if self.graph is not None:
            use_own_stream()

    def update(self, step, loss, scalars, momentum):
        """The second half of a step: from the gradient to all three networks' new weights. Returns its norm."""
        model, square = self.model, squared_norm(self.model.flat.grad)
        grad_norm = math.sqrt(square) if self.device == "cpu" else xp_of(square).sqrt(square)  # on a GPU, an array
        if self.device == "cpu":
            _check_finite(step, loss, grad_norm)
        if step == 0:
            self._check_all_reached()
        self.optimizer.update(scalars)  # this step's rate, eps and decay
        update_ema(model.target_flat.data, model.flat.data[: model.encoder_size], momentum)
        return grad_norm

    def collect(self, step, values):
        """Keep a step's results for the epoch's row of metrics; they are read at once on a CPU, later on a GPU."""
        self.unread.append((step, values))
        if self.device == "cpu" or len(self.unread) == READ_EVERY:
            self.read()

    def read(self):
        """Add the kept results to the epoch's sums. Raises TrainingError for a loss or norm that is not finite."""
        self._use_own_stream()
        sums = self.progress.sums
        unread, self.unread = self.unread, []
        for step, values in on_host(unread):
            self.steps.append((step + 1, values["loss"], values["grad_norm"], self.learning_rate(step)))
            _check_finite(step, values["loss"], values["grad_norm"])
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value

    def check_weights(self):
        """A step with finite gradients can still be too long: don't save such a run over a good checkpoint."""
        self._use_own_stream()
        weights = self.model.flat.data
        if not xp_of(weights).isfinite(weights).all():
            raise TrainingError(f"step {self.progress.step - 1} made weights that are not finite: {REMEDY}")

    def share(self):
        """Make all ranks start from rank 0's weights, moments and progress."""
        o = self.optimizer
        self.ranks.share(*self._vectors().values())
        o.steps, self.progress = self.ranks.first(lambda: (o.steps, self.progress))

    def check_ranks(self):
        """Raise TrainingError if ranks have different numbers: then none of them can be trusted."""
        sums = lambda: {name: f"{zlib.crc32(v):08x}" for name, v in self._vectors().items()}  # noqa: E731
        if text := self.ranks.difference(sums):
            raise TrainingError(f"step {self.progress.step - 1}: the checksum of {text}")

    def _vectors(self):
        return {
            "weights": self.model.flat.data, "target weights": self.model.target_flat.data,
            "Adam's m": self.optimizer.m, "Adam's v": self.optimizer.v,
        }  # fmt: skip

    def batch(self, step):
        """Normalised images (B, 3, S, S) and masks of a step."""
        seed, config = self.config.seed, self.config
        epoch, place = divmod(step, self.steps_per_epoch)
        if self.order[0] != epoch:
            self.order = epoch, rng(seed, "order of images", epoch).permutation(len(self.images))
        chosen = self.order[1][place * self.batch_size : (place + 1) * self.batch_size]
        images = self.images[to_device(chosen, self.device)]
        if config.augment_flip or config.augment_crop:
            images = augment(images, rng(seed, "augmentation", step), config.augment_flip, config.augment_crop)
        images = self.model.normalise(images)
        if config.augment_scale != (1, 1):
            windows = draw_windows(len(chosen), rng(seed, "resized crops", step), config.augment_scale)
            images = resized_crop(images, windows)
        return images, self.masker.sample(len(chosen), rng(seed, "masks", step))

    def learning_rate(self, step):
        c = self.config
        warmup = round(c.warmup_epochs * self.steps_per_epoch)
        return learning_rate(step, self.total_steps, warmup, c.base_lr, c.min_lr)

    def momentum(self, step):
        c = self.config
        return ema_momentum(step, self.total_steps, c.ema_momentum_start, c.ema_momentum_end)

    def _check_all_reached(self):
        reached = set().union(*self.ranks.gather(self.lanes.reached))  # in any process
        if reached - self.model.flat.parameters.keys():
            raise TrainingError(
                "a parameter outside of the model's flat vector received a gradient, but nothing would train or save "
                "it: build the layer into the model's class, or give it the parameters of the one that it replaces"
            )
        if missing := [name for name in self.model.flat.parameters if name not in reached]:
            raise TrainingError(f"{counted(len(missing), 'parameter')} received no gradient, such as {missing[0]}")


def _step_graph(trainer):
    from minijepa.kernels.graph import StepGraph  # here, because a CPU needs none of kernels/

    return StepGraph.of(trainer)


def _check_finite(step, loss, norm):
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(f"step {step}: the loss is {loss} and the gradient's norm {norm}: {REMEDY}")
