"""I-JEPA: context encoder, target encoder and predictor, and the loss between the latter two.

Assran et al., "Self-supervised learning from images with a joint-embedding predictive architecture", CVPR 2023,
arXiv:2301.08243.
"""

import numpy as np

from minijepa import ops
from minijepa.autograd import Tensor, no_tape
from minijepa.backend import rng, to_device, to_numpy
from minijepa.data.pixels import MEAN, STD, normalise
from minijepa.errors import ConfigError, DtypeError, ShapeError, TapeError
from minijepa.models.layout import TokenLayout
from minijepa.models.predictor import Predictor
from minijepa.models.vit import ViTEncoder, patchify
from minijepa.nn import FlatParameters, check_state, standardise


class IJEPA:
    """The three networks.

    ``config``: a Config. ``seed``: of the initial weights. ``device``: "cpu" or "cuda". ``dtype``: float32, or float64
    for checks. Images are float arrays (B, 3, S, S), normalised (``normalise``), on the same device.

    The trained parameters (context encoder and predictor) are views into one vector, ``flat.data``, laid out as

        [ encoder with weight decay | encoder without | predictor without | predictor with ]

    so that ``flat.data[:encoder_size]`` is what the EMA follows and decay applies to the first and the last part. The
    target encoder's vector ``target_flat.data`` has the order of the first two.
    """

    def __init__(self, config, seed=0, device="cpu", dtype=np.float32):
        self.config, self.device, self.dtype = config, device, np.dtype(dtype)
        self.mean, self.std = MEAN, STD  # of the images' channels, for ``normalise``; checkpoints carry them
        self.context_encoder = ViTEncoder(config, rng(seed, "initial encoder"))
        self.target_encoder = ViTEncoder(config, rng(seed, "initial encoder"))  # starts identical
        self.predictor = Predictor(config, rng(seed, "initial predictor"))

        encoder = _without_decay(self.context_encoder.named_parameters("context_encoder."), last=True)
        predictor = _without_decay(self.predictor.named_parameters("predictor."), last=False)
        target = _without_decay(self.target_encoder.named_parameters("target_encoder."), last=True)
        self.flat = FlatParameters(encoder + predictor, dtype, device)
        self.target_flat = FlatParameters(target, dtype, device, with_grad=False)
        for parameter in self.target_flat.parameters.values():
            parameter.requires_grad = False  # changed by the EMA alone
        size, self.encoder_size = self.flat.data.size, self.target_flat.data.size
        first = sum(p.size for p in self.target_flat.parameters.values() if p.decay)
        last = sum(p.size for p in self.flat.parameters.values() if p.decay) - first
        self.decayed = slice(0, first), slice(size - last, size)

    # -------------------------------------------------------------------------------------------- the forward passes

    def normalise(self, images):
        """What the networks take: uint8 images (B, 3, S, S) on the model's device -> floats of the same shape."""
        return normalise(images, self.mean, self.std).astype(self.dtype, copy=False)

    def encode(self, images, encoder="target"):
        """Features of every patch of whole images: (B, 3, S, S) -> (B, N, D). ``encoder``: "target" or "context"."""
        if encoder not in ("target", "context"):
            raise ConfigError(f"unknown encoder {encoder!r}: choose target or context")
        network = self.target_encoder if encoder == "target" else self.context_encoder
        patches = self._patches(images)
        features = network.encode(patches)
        return features.reshape(*patches.shape[:2], -1)

    def targets(self, images, masks):
        """Features of the target patches, (Tt, D): the target encoder sees the full image, then the blocks are taken.

        No gradient is recorded, whether a tape is running or not.
        """
        layout = self.layout(masks)
        with no_tape():
            features = self.target_encoder.encode(self._patches(images, layout), layout.target_rows)
            targets = ops.rows(features, layout.target_features)  # a patch stands in as many blocks as cover it
            if self.config.target_norm == "layer_norm":
                targets = standardise(targets)
        return targets

    def predictions(self, images, masks):
        """What the predictor expects at the target patches, (Tt, D); the context encoder sees context patches alone."""
        layout = self.layout(masks)
        patches = self._patches(images, layout)
        pixels = ops.rows(patches.reshape(-1, patches.shape[-1]), layout.context_pixels)
        context = self.context_encoder(pixels, layout.context_positions, layout.context_packing)
        return self.predictor(context, layout)

    def loss(self, images, masks, count=None):
        """The scalar loss between predictions and targets.

        ``count``: the number of target patches to divide by, these images' own if None (a part of a batch passes the
        whole batch's).
        """
        layout = self.layout(masks)
        return self.distance(self.predictions(images, layout), self.targets(images, layout), count)

    def distance(self, predictions, targets, count=None):
        """The configured loss between packed rows: (Tt, D), (Tt, D) -> scalar."""
        function = {"l2": ops.l2_loss, "smooth_l1": ops.smooth_l1_loss}[self.config.loss]
        return function(predictions, targets, count=count)

    def layout(self, masks):
        """The TokenLayout of ``masks``; a layout passes through, so that it is made once for both branches."""
        return TokenLayout.of(masks, self.config.num_patches, self.device)

    def _patches(self, images, layout=None):
        if isinstance(images, Tensor):
            if images.requires_grad:
                raise TapeError("the network does not differentiate with respect to its images: use images.detach()")
            images = images.data
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ShapeError(f"the network takes images (B, 3, {size}, {size}), was given {images.shape}")
        if images.dtype != self.dtype:
            remedy = "normalise() turns them into float32" if images.dtype == np.uint8 else f"use astype({self.dtype})"
            raise DtypeError(f"the network takes {self.dtype} images, was given {images.dtype}: {remedy}")
        if layout is not None and layout.batch != len(images):
            raise ShapeError(f"the network was given {len(images)} images, but masks of {layout.batch}")
        return patchify(images, self.config.patch_size)

    # ------------------------------------------------------------------------------------------------- the parameters

    def zero_grad(self):
        """Set every gradient to zero."""
        self.flat.grad[...] = 0

    def gradients(self):
        """{name: gradient} of the trained parameters, as copies on the host."""
        return {name: to_numpy(g) for name, g in self.flat.named(self.flat.grad).items()}

    def state_dict(self):
        """{name: values} of all three networks, as copies on the host."""
        state = {**self.flat.named(self.flat.data), **self.target_flat.named(self.target_flat.data)}
        return {name: to_numpy(values) for name, values in state.items()}

    def load_state_dict(self, state):
        """Copy values in, after checking that names and shapes are exactly this model's. Raises CheckpointError."""
        mine = {**self.flat.parameters, **self.target_flat.parameters}
        check_state(state, mine)
        for name, parameter in mine.items():
            parameter.data[...] = to_device(np.asarray(state[name], self.dtype), self.device)

    def num_parameters(self):
        """Number of trained parameters."""
        return self.flat.data.size


def _without_decay(named_parameters, last):
    """Parameters without weight decay behind (or before) those with it, otherwise in their order."""
    return sorted(named_parameters, key=lambda item: item[1].decay != last)
