"""The specification's network as a good PyTorch user would write it, for the benchmarks to compare with.

Eager, ``scaled_dot_product_attention``, fused AdamW, EMA by ``torch._foreach``, micro-batches with accumulation. Masks
are batched in two ways. ``padded``: each image has its own masks, padded to the longest, with a key mask. ``shared``:
the whole batch has the same masks, without padding. That is faster, but another algorithm: a batch has one context and
four blocks instead of 256 times as many.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, key_mask):
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        return self.proj(y.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, dim, heads, mlp_ratio, eps):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))

    def forward(self, x, key_mask=None):
        x = x + self.attn(self.norm1(x), key_mask)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        dim = c.encoder_embed_dim
        self.proj = nn.Conv2d(3, dim, c.patch_size, c.patch_size)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, c.num_patches, dim))
        self.blocks = nn.ModuleList(
            Block(dim, c.encoder_num_heads, c.mlp_ratio, c.layer_norm_eps) for _ in range(c.encoder_depth)
        )
        self.norm = nn.LayerNorm(dim, c.layer_norm_eps)

    def forward(self, images, index=None, key_mask=None):
        """``index`` (B, L): the patches to encode, all if None; ``key_mask`` (B, 1, 1, L): which of them are real."""
        x = self.proj(images).flatten(2).transpose(1, 2) + self.pos_embed
        if index is not None:
            x = x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))
        for block in self.blocks:
            x = block(x, key_mask)
        return self.norm(x)


class Predictor(nn.Module):
    def __init__(self, c):
        super().__init__()
        dim = c.predictor_embed_dim
        self.embed = nn.Linear(c.encoder_embed_dim, dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(c.num_patches, dim))
        self.blocks = nn.ModuleList(
            Block(dim, c.predictor_num_heads, c.mlp_ratio, c.layer_norm_eps) for _ in range(c.predictor_depth)
        )
        self.norm = nn.LayerNorm(dim, c.layer_norm_eps)
        self.proj = nn.Linear(dim, c.encoder_embed_dim)

    def forward(self, context, context_index, target_index, key_mask=None):
        """context (B, Lc, D), context_index (B, Lc), target_index (B, M, Lt) -> (B, M, Lt, D)."""
        b, m, lt = target_index.shape
        context = self.embed(context) + self.pos_embed[context_index]
        asked = self.mask_token + self.pos_embed[target_index.flatten(0, 1)]
        x = torch.cat([context.repeat_interleave(m, 0), asked], 1)
        for block in self.blocks:
            x = block(x, key_mask)
        return self.proj(self.norm(x[:, -lt:])).unflatten(0, (b, m))


def padded_masks(masks, size=None):
    """``Masks`` as rectangles: context_index, its key mask, target_index, its mask, the predictor's key mask.

    ``size``: (context patches, target patches) to pad to, for a fixed shape; the longest of each if None.
    """
    context, targets = masks.context, masks.targets
    b, m = len(context), masks.num_targets
    lc, lt = size or (max(map(len, context)), max(len(t) for blocks in targets for t in blocks))
    context_index, context_real = torch.zeros(b, lc, dtype=torch.long), torch.zeros(b, lc, dtype=torch.bool)
    target_index, target_real = torch.zeros(b, m, lt, dtype=torch.long), torch.zeros(b, m, lt, dtype=torch.bool)
    for i in range(b):
        n = len(context[i])
        context_index[i, :n], context_real[i, :n] = torch.as_tensor(context[i]), True
        for j in range(m):
            n = len(targets[i][j])
            target_index[i, j, :n], target_real[i, j, :n] = torch.as_tensor(targets[i][j]), True
    joint = torch.cat([context_real.repeat_interleave(m, 0), target_real.flatten(0, 1)], 1)
    return context_index, context_real[:, None, None], target_index, target_real, joint[:, None, None]


class TorchIJEPA:
    """Both encoders, the predictor and the optimiser; ``step`` does one training step."""

    def __init__(self, config, device="cpu"):
        torch.manual_seed(0)
        self.device = device
        self.context, self.target = Encoder(config).to(device), Encoder(config).to(device)
        self.target.load_state_dict(self.context.state_dict())
        self.target.requires_grad_(False)
        self.predictor = Predictor(config).to(device)
        named = [*self.context.named_parameters(), *self.predictor.named_parameters()]
        decay = [p for n, p in named if p.ndim > 1 and "pos_embed" not in n and "mask_token" not in n]
        rest = [p for n, p in named if not any(p is q for q in decay)]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=config.base_lr, fused=True,
        )  # fmt: skip

    def step(self, images, masks, micro, shared, momentum=0.996):
        """``masks``: our Masks for these images, or for one image if ``shared``. Returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        count = masks.target_lengths.sum().item() * (len(images) if shared else 1)
        for start in range(0, len(images), micro):
            part = images[start : start + micro]
            padded = padded_masks(masks if shared else masks.select(slice(start, start + micro)))
            loss = self.loss(part, padded, shared) / count
            loss.backward()
            total += loss.detach()
        self.update(momentum)
        return float(total)

    def update(self, momentum=0.996):
        """The optimiser's step, and the target encoder's after it."""
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.parameters()), list(self.context.parameters()), 1 - momentum)

    def loss(self, images, padded, shared=False):
        """Sum of squared errors over all target patches; ``padded``: what padded_masks gave."""
        b = len(images)
        context_index, context_mask, target_index, real, joint_mask = padded
        if shared:  # blocks of one size: nothing is padding
            context_index, target_index = context_index.expand(b, -1), target_index.expand(b, -1, -1)
            context_mask = joint_mask = None
        with torch.no_grad():
            features = self.target(images)
            m, lt = target_index.shape[1:]
            index = target_index.reshape(b, -1, 1).expand(-1, -1, features.shape[2])
            targets = features.gather(1, index).unflatten(1, (m, lt))
        context = self.context(images, context_index, context_mask)
        error = (self.predictor(context, context_index, target_index, joint_mask) - targets).square().sum(-1)
        return error.sum() if shared else (error * real).sum()
