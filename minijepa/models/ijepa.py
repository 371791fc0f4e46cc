"""I-JEPA: context encoder, target encoder and predictor, and the loss between predictions and targets.

Assran et al., "Self-supervised learning from images with a joint-embedding predictive architecture", CVPR 2023,
arXiv:2301.08243.
"""

import numpy as np

from minijepa import ops
from minijepa.autograd import no_tape
from minijepa.backend import rng, to_numpy
from minijepa.errors import ShapeError
from minijepa.models.encoder import ImageEncoder, without_decay
from minijepa.models.layout import TokenLayout
from minijepa.models.predictor import Predictor
from minijepa.models.vit import ViTEncoder, patchify
from minijepa.nn import FlatParameters, standardise_rows

LOSSES = {  # the function, and whether it sums over the D dimensions (else it is their mean)
    "l2": (ops.l2_loss, True),
    "smooth_l1": (ops.smooth_l1_loss, False),
}


class IJEPA(ImageEncoder):
    """The three networks: ImageEncoder's target encoder, the context encoder and the predictor.

    The trained parameters (context encoder and predictor) are views into one vector, ``flat.data``, laid out as

        [ encoder with weight decay | encoder without | predictor without | predictor with ]

    so that the EMA follows ``flat.data[:encoder_size]``, and decay applies to the first and the last part. The target
    encoder's vector ``target_flat.data`` is in the order of the first two.
    """

    def __init__(self, config, seed=0, device="cpu", dtype=np.float32):
        super().__init__(config, seed, device, dtype)
        self.context_encoder = ViTEncoder(config, rng(seed, "initial encoder"))  # starts identical
        self.predictor = Predictor(config, rng(seed, "initial predictor"))
        encoder = without_decay(self.context_encoder.named_parameters("context_encoder."), last=True)
        predictor = without_decay(self.predictor.named_parameters("predictor."), last=False)
        self.flat = FlatParameters(encoder + predictor, dtype, device)
        size, self.encoder_size = self.flat.data.size, self.target_flat.data.size
        first = sum(p.size for p in self.target_flat.parameters.values() if p.decay)
        last = sum(p.size for p in self.flat.parameters.values() if p.decay) - first
        self.decayed = slice(0, first), slice(size - last, size)

    # -------------------------------------------------------------------------------------------- the forward passes

    def targets(self, images, masks):
        """Features of the target patches, (Tt, D): the target encoder sees the full image, then the blocks are taken.

        Nothing is recorded, even under a tape.
        """
        return self.targets_of(*self.prepare(images, masks))

    def predictions(self, images, masks):
        """The predictor's features of the target patches, (Tt, D); the context encoder sees only context patches."""
        return self.predictions_of(*self.prepare(images, masks))

    def loss(self, images, masks, count=None):
        """The scalar loss between predictions and targets.

        ``count``: the number of target patches to divide by; by default that of these images (a part of a batch passes
        the whole batch's).
        """
        patches, layout = self.prepare(images, masks)
        return self.distance(self.predictions_of(patches, layout), self.targets_of(patches, layout), count)

    def prepare(self, images, masks):
        """The input of both branches: the images' patches, (B, N, 3p²), and the TokenLayout of their masks."""
        patches = patchify(self._checked(images), self.config.patch_size)
        if len(masks) != len(patches):
            raise ShapeError(f"the network was given {len(patches)} images, but masks of {len(masks)}")
        return patches, TokenLayout.of(masks, patches.shape[1], self.device)

    def targets_of(self, patches, layout):
        """:meth:`targets`, from the results of :meth:`prepare`."""
        with no_tape():  # the stop-gradient
            features = self.target_encoder.encode(patches, layout.image_packing, layout.target_rows)
            targets = ops.rows(features, layout.target_features)  # blocks may share patches
            if self.config.target_norm == "layer_norm":
                targets = standardise_rows(targets)
        return targets

    def predictions_of(self, patches, layout):
        """:meth:`predictions`, from the results of :meth:`prepare`."""
        pixels = ops.rows(patches.reshape(-1, patches.shape[-1]), layout.context_pixels)
        context = self.context_encoder(pixels, layout.context_positions, layout.context_packing)
        return self.predictor(context, layout)

    def distance(self, predictions, targets, count=None):
        """The configured loss between packed rows: (Tt, D), (Tt, D) -> scalar."""
        function, _ = LOSSES[self.config.loss]
        return function(predictions, targets, count=count)

    def loss_per_dim(self, loss):
        """``loss`` as a mean over the D dimensions too, so that networks of different widths can be compared."""
        _, sums = LOSSES[self.config.loss]
        return loss / self.config.encoder_embed_dim if sums else loss

    # ------------------------------------------------------------------------------------------------- the parameters

    def zero_grad(self):
        """Set every gradient to zero. Raises TrainingError if a parameter's array is not in the flat vector."""
        self.flat.check_tied()
        self.flat.grad[...] = 0

    def gradients(self):
        """{name: gradient} of the trained parameters, as copies on the host."""
        return {name: to_numpy(g) for name, g in self.flat.named(self.flat.grad).items()}

    def named_parameters(self):
        """Yield (dotted name, Parameter): the trained ones, then the target encoder's, which need no gradient."""
        yield from self.flat.parameters.items()
        yield from super().named_parameters()

    def num_parameters(self):
        """Number of trained parameters."""
        return self.flat.data.size
