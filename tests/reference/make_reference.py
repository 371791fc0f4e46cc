"""Write reference.npz: I-JEPA's forward pass, loss and gradients in PyTorch float64, for the tests to compare with.

    python tests/reference/make_reference.py        # needs torch; README.md lists what the file holds

Written from the specification, sharing no code with minijepa, and as unlike it as the formulas allow: torch's own
layers, a convolution as patch embedding, one image and one target block at a time, nothing packed, nothing padded.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SEED = 20230413
BATCH = 5
CONFIG = dict(
    image_size=16, patch_size=4, encoder_embed_dim=24, encoder_depth=2, encoder_num_heads=3, predictor_embed_dim=16,
    predictor_depth=2, predictor_num_heads=2, mlp_ratio=4.0, num_target_blocks=3,
)  # fmt: skip

# Image by image, rectangles (top, left, height, width) on the 4x4 grid: the context's, then the three target blocks'.
# The context loses the patches that a target block covers: image 1 keeps a single one.
RECTANGLES = [
    ((0, 0, 4, 4), [(0, 0, 2, 2), (1, 1, 2, 2), (0, 2, 1, 2)]),
    ((0, 0, 4, 4), [(0, 0, 3, 2), (0, 1, 3, 3), (1, 0, 3, 3)]),
    ((0, 0, 4, 3), [(2, 2, 1, 1), (2, 1, 2, 2), (0, 2, 3, 2)]),
    ((0, 0, 3, 4), [(3, 0, 1, 3), (2, 0, 2, 1), (2, 0, 2, 4)]),
    ((1, 0, 3, 4), [(1, 1, 2, 3), (0, 2, 3, 1), (2, 1, 2, 2)]),
]


class Attention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N, D / H)
        heads = F.scaled_dot_product_attention(q, k, v)
        return self.proj(heads.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        hidden = int(dim * mlp_ratio)
        layers = dict(fc1=nn.Linear(dim, hidden), act=nn.GELU(approximate="tanh"), fc2=nn.Linear(hidden, dim))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch_size, dim):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)  # (B, D, rows, columns) -> (B, N, D), row by row


class Encoder(nn.Module):
    def __init__(self, num_patches, patch_size, dim, depth, num_heads, mlp_ratio):
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, dim))
        self.blocks = nn.ModuleList([Block(dim, num_heads, mlp_ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images, keep=None):
        """images (B, 3, H, W) -> (B, N, D), or (B, len(keep), D) when only the patches `keep` are to be seen."""
        x = self.patch_embed(images) + self.pos_embed
        if keep is not None:
            x = x[:, keep]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Predictor(nn.Module):
    def __init__(self, num_patches, encoder_dim, dim, depth, num_heads, mlp_ratio):
        super().__init__()
        self.predictor_embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.predictor_pos_embed = nn.Parameter(torch.zeros(1, num_patches, dim))
        self.predictor_blocks = nn.ModuleList([Block(dim, num_heads, mlp_ratio) for _ in range(depth)])
        self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.predictor_proj = nn.Linear(dim, encoder_dim)

    def forward(self, context_features, context, target):
        """One image, one block: context_features (1, len(context), D) -> predictions (1, len(target), D)."""
        context_tokens = self.predictor_embed(context_features) + self.predictor_pos_embed[:, context]
        mask_tokens = self.mask_token + self.predictor_pos_embed[:, target]
        x = torch.cat([context_tokens, mask_tokens], dim=1)
        for block in self.predictor_blocks:
            x = block(x)
        return self.predictor_proj(self.predictor_norm(x)[:, len(context) :])


class IJEPA(nn.Module):
    def __init__(self, config):
        super().__init__()
        num_patches = (config["image_size"] // config["patch_size"]) ** 2
        dim, mlp_ratio = config["encoder_embed_dim"], config["mlp_ratio"]
        grid = num_patches, config["patch_size"]
        encoder = *grid, dim, config["encoder_depth"], config["encoder_num_heads"], mlp_ratio
        predictor = (config[f"predictor_{name}"] for name in ("embed_dim", "depth", "num_heads"))
        self.context_encoder = Encoder(*encoder)
        self.target_encoder = Encoder(*encoder).requires_grad_(False)
        self.predictor = Predictor(num_patches, dim, *predictor, mlp_ratio)

    def predictions_and_targets(self, images, contexts, targets):
        """Two (T, D) arrays, a row for each target patch: image by image, block by block."""
        predicted, wanted = [], []
        for image, context, blocks in zip(images, contexts, targets):
            context_features = self.context_encoder(image[None], keep=context)
            with torch.no_grad():
                features = self.target_encoder(image[None])
            for block in blocks:
                predicted.append(self.predictor(context_features, context, block)[0])
                wanted.append(features[0, block])
        return torch.cat(predicted), torch.cat(wanted)


def l2_loss(predictions, targets):
    """The specification's: squared error summed over D, mean over all target patches."""
    return (predictions - targets).pow(2).sum(dim=-1).mean()


def smooth_l1_loss(predictions, targets):
    """Smooth L1 (beta 1), mean over elements, against targets normalised over D without weight or bias (eps 1e-5)."""
    return F.smooth_l1_loss(predictions, F.layer_norm(targets, targets.shape[-1:]))


LOSSES = {"loss": l2_loss, "smooth_l1_loss": smooth_l1_loss}


def fill_with_noise(model, rng):
    """Generic weights: no bias at 0, no norm at 1, large enough for attention to be far from uniform."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)))
            if "norm" in name:
                noise = 0.25 * noise + (1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                noise = 0.3 * noise
            elif name.endswith("weight"):
                noise = 1.4 * noise / parameter[0].numel() ** 0.5  # parameter[0] holds one output's weights
            else:  # positions, mask token
                noise = 0.6 * noise
            parameter.copy_(noise)


def masks(rectangles, grid_size):
    """contexts: B sorted lists of patch numbers; targets: B lists of M such lists."""

    def patches(top, left, height, width):
        return [row * grid_size + column for row in range(top, top + height) for column in range(left, left + width)]

    targets = [[patches(*block) for block in blocks] for _, blocks in rectangles]
    contexts = [
        [patch for patch in patches(*context) if not any(patch in block for block in blocks)]
        for (context, _), blocks in zip(rectangles, targets)
    ]
    return contexts, targets


def gradients(model, loss):
    """{name: array} for every parameter that is trained."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), retain_graph=True)
    return {name: gradient.numpy() for name, gradient in zip(trained, found)}


def main():
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rng = np.random.default_rng(SEED)
    model = IJEPA(CONFIG)
    fill_with_noise(model, rng)
    images = torch.from_numpy(rng.standard_normal((BATCH, 3, CONFIG["image_size"], CONFIG["image_size"])))
    contexts, targets = masks(RECTANGLES, CONFIG["image_size"] // CONFIG["patch_size"])

    outputs = model.predictions_and_targets(images, contexts, targets)
    losses = {key: loss(*outputs) for key, loss in LOSSES.items()}
    analytic = {key: gradients(model, loss) for key, loss in losses.items()}

    arrays = {f"config/{key}": np.array(value) for key, value in CONFIG.items()}
    arrays |= {f"param/{name}": p.detach().numpy() for name, p in model.named_parameters()}
    arrays |= {
        "images": images.numpy(),
        "context_lengths": np.array([len(context) for context in contexts]),
        "context_index": np.concatenate(contexts),
        "target_lengths": np.array([[len(block) for block in blocks] for blocks in targets]),
        "target_index": np.concatenate([block for blocks in targets for block in blocks]),
        "features_target": model.target_encoder(images).numpy(),
        "features_context": model.context_encoder(images).detach().numpy(),
        "predictions": outputs[0].detach().numpy(),
        "targets": outputs[1].numpy(),
        "loss": losses["loss"].detach().numpy(),
        "smooth_l1_loss": losses["smooth_l1_loss"].detach().numpy(),
    }
    arrays |= {f"grad/{name}": gradient for name, gradient in analytic["loss"].items()}
    arrays |= {f"smooth_l1_grad/{name}": gradient for name, gradient in analytic["smooth_l1_loss"].items()}

    path = Path(__file__).with_name("reference.npz")
    np.savez(path, **arrays)
    print(f"loss {losses['loss']:.6f}, smooth L1 {losses['smooth_l1_loss']:.6f}")
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
