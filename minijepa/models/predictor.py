"""The predictor: a narrow transformer from context to a target block's features (specification, section 4)."""

from minijepa import ops
from minijepa.autograd import Parameter
from minijepa.nn import Block, LayerNorm, Linear, Module, normal


class Predictor(Module):
    """Context features and the positions of target blocks -> predicted features of the blocks.

    A sequence is [context tokens of an image ; mask tokens of ONE of its target blocks]; a mask token is one shared
    vector plus its patch's position embedding. Blocks of one image are separate sequences: their tokens never meet.
    """

    def __init__(self, config, rng):
        outer, dim, eps = config.encoder_embed_dim, config.predictor_embed_dim, config.layer_norm_eps
        std = config.init_std
        self.predictor_embed = Linear(outer, dim, rng, std)
        self.mask_token = Parameter(normal(rng, (1, 1, dim)))
        self.predictor_pos_embed = Parameter(normal(rng, (1, config.num_patches, dim)))
        self.predictor_blocks = [
            Block(dim, config.predictor_num_heads, config.mlp_ratio, eps, rng, std)
            for _ in range(config.predictor_depth)
        ]
        self.predictor_norm = LayerNorm(dim, eps)
        self.predictor_proj = Linear(dim, outer, rng, std)

    def forward(self, context, layout):
        """context (Tc, D) -> predictions (Tt, D): rows image by image, block by block. ``layout``: a TokenLayout."""
        positions = ops.reshape(self.predictor_pos_embed, self.predictor_pos_embed.shape[1:])
        context = self.predictor_embed(context) + ops.rows(positions, layout.context_positions)
        masked = ops.reshape(self.mask_token, (-1,)) + ops.rows(positions, layout.target_positions)
        x = ops.rows(ops.concat([context, masked]), layout.predictor_rows)
        for block in self.predictor_blocks[:-1]:
            x = block(x, layout.predictor_packing)
        x = self.predictor_blocks[-1](x, layout.predictor_packing, layout.prediction_rows)  # the mask tokens alone
        return self.predictor_proj(self.predictor_norm(x))
