"""An image encoder: all that features need. I-JEPA trains one; an exported file holds just that."""

from dataclasses import dataclass

import numpy as np

from minijepa.autograd import Tensor, current_tape
from minijepa.backend import plain, rng, xp_of
from minijepa.cli import counted
from minijepa.data.pixels import MEAN, STD, normalise
from minijepa.errors import ConfigError, DtypeError, MissingPartError, ShapeError, TapeError
from minijepa.models.chunks import chunks, map_images
from minijepa.models.vit import ViTEncoder, patchify
from minijepa.nn import FlatParameters, Module
from minijepa.ops import Packing


@dataclass(frozen=True)
class Classifier:
    """A linear classifier on features averaged over patches: ``weight`` (C, D), ``bias`` (C,), C names of classes."""

    weight: np.ndarray
    bias: np.ndarray
    classes: tuple

    def probabilities(self, x):
        """The probability of each class: features (N, D) -> (N, C)."""
        z = x.astype(np.float64) @ self.weight.T + self.bias
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)


class ImageEncoder:
    """The target encoder, with the channel statistics that its images are normalised by.

    ``config``: a Config. ``seed``: of the initial weights. ``device``: "cpu" or "cuda". ``dtype``: float32, or float64
    for checks. Images are float arrays (B, 3, S, S), normalised (``normalise``), on the same device. ``classifier``: a
    Classifier of its features if the file has one, else None. The parameters are views into one vector,
    ``target_flat.data``: those with weight decay first.
    """

    def __init__(self, config, seed=0, device="cpu", dtype=np.float32):
        self.config, self.device, self.dtype = config, device, np.dtype(dtype)
        self.mean, self.std = MEAN, STD  # of the images' channels, for ``normalise``; checkpoints store them
        self.classifier = None
        self.target_encoder = ViTEncoder(config, rng(seed, "initial encoder"))
        named = without_decay(self.target_encoder.named_parameters("target_encoder."), last=True)
        self.target_flat = FlatParameters(named, dtype, device, with_grad=False)
        for parameter in self.target_flat.parameters.values():
            parameter.requires_grad = False  # only the EMA changes it

    def __getattr__(self, name):
        """Called only for missing attributes."""
        if name in ("context_encoder", "predictor", "flat", "targets", "predictions", "loss", "gradients"):
            raise MissingPartError(f"no {name}: this is {ALONE}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self):
        c, predictor, name = self.config, "", type(self).__name__
        if hasattr(self, "predictor"):
            predictor = f"predictor {c.predictor_embed_dim} wide, {counted(c.predictor_depth, 'block')}; "
        return (
            f"{name}(encoder {c.encoder_embed_dim} wide, {counted(c.encoder_depth, 'block')}; {predictor}"
            f"{self.num_parameters():,} parameters, {self.device})"
        )

    def _repr_html_(self):
        from minijepa.pictures.notebook import model_html

        return model_html(self)

    def normalise(self, images):
        """What the networks take: uint8 images (B, 3, S, S) on the model's device -> floats of the same shape."""
        return normalise(images, self.mean, self.std).astype(self.dtype, copy=False)

    def encode(self, images, encoder="target"):
        """Features of every patch of whole images: (B, 3, S, S) -> (B, N, D). ``encoder``: "target" or "context".

        Any number of images: without a tape, they go through the network in chunks.
        """
        network, images = self.network(encoder), self._checked(images)
        if current_tape() is not None:
            return self._tokens(network, images)[0]
        shape = len(images), self.config.num_patches, self.config.encoder_embed_dim
        features = xp_of(images).empty(shape, self.dtype)
        for part in chunks(len(images), self.device):
            features[part] = self._tokens(network, images[part])[0].data
        return Tensor(features)

    def features(self, images, encoder="target", threads=None, blocks=1):
        """A vector for each image, its patches' features averaged: uint8 (N, 3, S, S) -> float32 NumPy array (N, D).

        The images are as in a data set: not normalised, on the host, and any number of them. ``threads``: on a CPU; all
        cores if None. ``blocks``: with 4, the features after each of the last four blocks, side by side, (N, 4 D).
        """
        self.check_blocks(blocks)
        network = self.network(encoder)

        def averaged(chunk):
            images = self._checked(self.normalise(chunk))
            after = self._tokens(network, images, blocks)
            return xp_of(images).concatenate([x.data.mean(axis=1) for x in after], axis=1)

        return map_images(self, images, averaged, (blocks * self.config.encoder_embed_dim,), threads)

    def check_blocks(self, blocks):
        """Raise ConfigError unless an encoder has so many blocks."""
        depth = self.config.encoder_depth
        if not 1 <= blocks <= depth:
            raise ConfigError(f"--blocks {blocks}: the encoder has {counted(depth, 'block')}")

    def _tokens(self, network, images, blocks=1):
        """After each of the last ``blocks`` blocks: (B, 3, S, S) -> ``blocks`` times (B, N, D)."""
        patches = patchify(images, self.config.patch_size)
        b, n, _ = patches.shape
        return [x.reshape(b, n, -1) for x in network.last_blocks(patches, Packing([n] * b), blocks)]

    def network(self, encoder):
        """The encoder of that name, "target" or "context". Raises ConfigError if the model does not have it."""
        if encoder not in ("target", "context"):
            raise ConfigError(f"unknown encoder {encoder!r}: choose target or context")
        if not hasattr(self, f"{encoder}_encoder"):
            raise ConfigError(f"no {encoder} encoder: this is {ALONE}")
        return getattr(self, f"{encoder}_encoder")

    def _checked(self, images):
        """``images`` as an array that the networks can take, or an error."""
        if isinstance(images, Tensor):
            if images.requires_grad:
                raise TapeError("the network does not differentiate with respect to its images: use images.detach()")
            images = images.data
        images, size = plain(images), self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ShapeError(f"the network takes images (B, 3, {size}, {size}), was given {images.shape}")
        if images.dtype != self.dtype:
            remedy = "normalise() turns them into float32" if images.dtype == np.uint8 else f"use astype({self.dtype})"
            raise DtypeError(f"the network takes {self.dtype} images, was given {images.dtype}: {remedy}")
        return images

    # ------------------------------------------------------------------------------------------------- the parameters

    def named_parameters(self):
        """Yield (dotted name, Parameter) of all its networks, with the names of ``state_dict``."""
        yield from self.target_flat.parameters.items()

    def num_parameters(self):
        """Number of parameters; of an IJEPA, the trained ones."""
        return self.target_flat.data.size

    state_dict, load_state_dict = Module.state_dict, Module.load_state_dict  # of what named_parameters yields


ALONE = "an exported target encoder; the run's checkpoint has the context encoder and the predictor too"


def without_decay(named_parameters, last):
    """The parameters without weight decay last, or first; otherwise in their order."""
    return sorted(named_parameters, key=lambda item: item[1].decay != last)
