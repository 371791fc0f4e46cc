"""The vision transformer of both encoders (Dosovitskiy et al., 2020, arXiv:2010.11929), without a class token."""

import collections
import math

import numpy as np

from minijepa import ops
from minijepa.autograd import Parameter
from minijepa.nn import Block, LayerNorm, Module, normal


def patchify(images, patch_size):
    """Cut images (B, C, S, S) into patches: (B, N, C p²), patches row by row, each with its channels in order.

    A convolution with kernel size and stride p sees each patch on its own: it is this array times the kernel as a
    (D, C p²) matrix.
    """
    b, c, size, _ = images.shape
    g = size // patch_size
    patches = images.reshape(b, c, g, patch_size, g, patch_size).transpose(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, g * g, c * patch_size * patch_size)


class PatchEmbed(Module):
    """Patches to tokens: pixels (..., 3p²) -> (..., D)"""

    def __init__(self, dim, patch_size, gain, rng):
        std = gain / math.sqrt(3 * patch_size**2)  # gain 1: a patch of white noise becomes a token of variance 1
        self.proj = Module()  # with timm's names, and the shape of a convolution's kernel
        self.proj.weight = Parameter(normal(rng, (dim, 3, patch_size, patch_size), std), decay=True)
        self.proj.bias = Parameter(np.zeros(dim))

    def forward(self, pixels):
        weight = self.proj.weight
        return ops.linear(pixels, ops.reshape(weight, (weight.shape[0], -1)), self.proj.bias)


class ViTEncoder(Module):
    """Patch embedding + learned positions, pre-norm blocks, final LayerNorm."""

    def __init__(self, config, rng):
        dim, eps = config.encoder_embed_dim, config.layer_norm_eps
        self.patch_embed = PatchEmbed(dim, config.patch_size, config.patch_embed_gain, rng)
        self.pos_embed = Parameter(normal(rng, (1, config.num_patches, dim)))
        self.blocks = [
            Block(dim, config.encoder_num_heads, config.mlp_ratio, eps, rng, config.init_std)
            for _ in range(config.encoder_depth)
        ]
        self.norm = LayerNorm(dim, eps)

    def forward(self, pixels, positions, packing):
        """Tokens of chosen patches: pixel rows (T, 3p²) at ``positions`` (T,) of packed sequences -> (T, D).

        Embedding and position act on each patch alone, so they may be applied before or after choosing the patches;
        after, no unused patch is embedded.
        """
        positions = ops.rows(ops.reshape(self.pos_embed, self.pos_embed.shape[1:]), positions)
        return self._transform(self.patch_embed(pixels) + positions, packing)

    def encode(self, patches, packing, keep=None):
        """Tokens of all patches of all images: (B, N, 3p²) -> (B N, D), image by image; or of the rows ``keep``.

        ``packing``: B sequences of N.
        """
        return self._transform(self._embed(patches), packing, keep)

    def last_blocks(self, patches, packing, count):
        """Like :meth:`encode`, after each of the last ``count`` blocks and the final norm: ``count`` times (B N, D)."""
        x = self._embed(patches)
        outputs = collections.deque((x := block(x, packing) for block in self.blocks), maxlen=count)  # frees the others
        return [self.norm(x) for x in outputs]

    def _embed(self, patches):
        x = self.patch_embed(patches) + self.pos_embed
        return ops.reshape(x, (-1, x.shape[-1]))

    def _transform(self, x, packing, keep=None):
        for block in self.blocks[:-1]:
            x = block(x, packing)
        return self.norm(self.blocks[-1](x, packing, keep))
