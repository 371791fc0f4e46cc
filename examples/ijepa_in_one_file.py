"""I-JEPA in one file: NumPy and nothing else, to be read from top to bottom in one sitting.

The method (Assran et al., 2023, arXiv:2301.08243): hide four blocks of an image, and predict from what is left what a
slowly moving copy of the encoder says about them. No labels, and no pixels to reconstruct. Images are taken one at a
time, so no array has a batch axis: an image is a matrix, with a row for each of its patches. The package does the same
for whole batches, several times as fast, and its tests hold a training step of this file to the package's.

    python examples/ijepa_in_one_file.py [STEPS]      # a minute, on CIFAR-10 if data/ has it, else on drawn shapes
"""

import argparse
import math
import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # our matrices are too small to be shared among threads
import numpy as np

SIDE, PATCH = 32, 4  # pixels
GRID, N = SIDE // PATCH, (SIDE // PATCH) ** 2  # an image is 8 × 8 patches, numbered row by row
ENCODER, PREDICTOR = dict(width=96, depth=3, heads=4), dict(width=48, depth=2, heads=4)
BATCH, LEARNING_RATE, WEIGHT_DECAY, MOMENTUM = 16, 1e-3, 0.05, 0.99

# ---- the tape --------------------------------------------------------------------------------------------------------
tape = []  # the values that operations made, in the order in which they ran

class Value:
    """An array, and the gradient of the loss with respect to it, to which every use of the value adds its part."""
    def __init__(self, data, backward=None):
        self.data, self.grad, self.backward = data, np.zeros_like(data), backward
        if backward:  # an operation made it, and this is the way back to the operation's inputs
            tape.append(self)

def walk_back(loss):
    """The last operation first: all that used a value ran after it, so the value's gradient is complete in time."""
    loss.grad += 1  # dL/dL
    while tape:
        value = tape.pop()
        value.backward(value.grad)

# ---- the operations: forward, and what each input receives of dy = dL/dy ---------------------------------------------
def add(a, b):
    """y = a + b;   da = dy,   db = dy"""
    def backward(dy):
        a.grad += dy
        b.grad += dy
    return Value(a.data + b.data, backward)

def linear(x, w, b):
    """y = x wᵀ + b: (T, i), (o, i), (o) -> (T, o);   dx = dy w,   dw = dyᵀ x,   db = Σ dy over the rows"""
    def backward(dy):
        x.grad += dy @ w.data
        w.grad += dy.T @ x.data
        b.grad += dy.sum(axis=0)
    return Value(x.data @ w.data.T + b.data, backward)

def rows(x, index):
    """y[t] = x[index[t]];   dx[i] = Σ dy[t] over all t with index[t] = i: a row that was taken twice gets two parts"""
    def backward(dy):
        np.add.at(x.grad, index, dy)
    return Value(x.data[index], backward)

def concat(parts):
    """Matrices stacked;   each gets its own rows of dy"""
    ends = np.cumsum([len(part.data) for part in parts])
    def backward(dy):
        for part, its_dy in zip(parts, np.split(dy, ends)):
            part.grad += its_dy
    return Value(np.concatenate([part.data for part in parts]), backward)

def gelu(x):
    """y = x s,   s = ½ (1 + tanh u),   u = c (x + a x³);   dx = dy (s + x s'),   s' = 2 s (1 − s) c (1 + 3 a x²)"""
    a, c, z = 0.044715, math.sqrt(2 / math.pi), x.data
    s = 0.5 * (1 + np.tanh(c * (z + a * z * z * z)))
    def backward(dy):
        x.grad += dy * (s + z * 2 * s * (1 - s) * c * (1 + 3 * a * z * z))
    return Value(z * s, backward)

def layer_norm(x, w, b, eps=1e-6):
    """y = w x̂ + b,   x̂ = (x − mean(x)) r,   r = 1/√(variance(x) + eps), for each row;   with g = dL/dx̂ = w dy:
    dx = r (g − mean(g) − x̂ mean(g x̂)),   dw = Σ dy x̂ and db = Σ dy over the rows"""
    centred = x.data - x.data.mean(axis=1, keepdims=True)
    r = 1 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + eps)
    xhat = centred * r
    def backward(dy):
        g = w.data * dy
        x.grad += r * (g - g.mean(axis=1, keepdims=True) - xhat * (g * xhat).mean(axis=1, keepdims=True))
        w.grad += (dy * xhat).sum(axis=0)
        b.grad += dy.sum(axis=0)
    return Value(w.data * xhat + b.data, backward)

def attention(qkv, heads):
    """y = P v,   P = softmax(A) over each row,   A = s q kᵀ,   s = 1/√d, in every head: (T, 3D) -> (T, D);
    dv = Pᵀ dy,   dP = dy vᵀ,   dA = P (dP − Σ dP P over the row),   dq = s dA k,   dk = s dAᵀ q"""
    t, width = qkv.data.shape
    q, k, v = qkv.data.reshape(t, 3, heads, -1).transpose(1, 2, 0, 3)  # each (heads, T, d)
    s = math.sqrt(3 * heads / width)
    a = s * q @ k.swapaxes(1, 2)
    p = np.exp(a - a.max(axis=2, keepdims=True))  # a constant added to a row cancels in softmax
    p /= p.sum(axis=2, keepdims=True)
    def backward(dy):
        dy = dy.reshape(t, heads, -1).swapaxes(0, 1)
        dp = dy @ v.swapaxes(1, 2)
        da = p * (dp - (dp * p).sum(axis=2, keepdims=True))
        dqkv = np.stack([s * da @ k, s * da.swapaxes(1, 2) @ q, p.swapaxes(1, 2) @ dy])
        qkv.grad += dqkv.transpose(2, 0, 1, 3).reshape(t, width)
    return Value((p @ v).swapaxes(0, 1).reshape(t, -1), backward)

def squared_distance(p, q, count):
    """y = Σ (p − q)² / count, for an array q that needs no gradient;   dp = 2 (p − q) dy / count"""
    def backward(dy):
        p.grad += 2 * (p.data - q) * dy / count
    return Value(((p.data - q) ** 2).sum() / count, backward)

# ---- the networks: functions of a dict of parameters, which have timm's names ----------------------------------------
def layer(params, name):  # its weight and its bias
    return params[name + ".weight"], params[name + ".bias"]

def block(params, name, x, heads):
    """x + attention(norm(x)), then x + mlp(norm(x)): (T, width) -> (T, width). Tokens meet only in attention."""
    y = layer_norm(x, *layer(params, name + ".norm1"))
    y = attention(linear(y, *layer(params, name + ".attn.qkv")), heads)
    x = add(x, linear(y, *layer(params, name + ".attn.proj")))
    y = layer_norm(x, *layer(params, name + ".norm2"))
    y = gelu(linear(y, *layer(params, name + ".mlp.fc1")))
    return add(x, linear(y, *layer(params, name + ".mlp.fc2")))

def encode(params, name, patches, visible):
    """The features of the ``visible`` patches, which see each other and no others: (N, 48) -> (T, 96)"""
    x = linear(Value(patches[visible]), *layer(params, name + ".patch_embed.proj"))
    x = add(x, rows(params[name + ".pos_embed"], visible))
    for i in range(ENCODER["depth"]):
        x = block(params, f"{name}.blocks.{i}", x, ENCODER["heads"])
    return layer_norm(x, *layer(params, name + ".norm"))

def predict(params, features, context, target):
    """A target block's features from the context's: (Tc, 96) -> (Tt, 96). A mask token + a position asks for it."""
    positions = params["predictor.predictor_pos_embed"]
    seen = add(linear(features, *layer(params, "predictor.predictor_embed")), rows(positions, context))
    asked = add(rows(params["predictor.mask_token"], np.zeros_like(target)), rows(positions, target))
    x = concat([seen, asked])
    for i in range(PREDICTOR["depth"]):
        x = block(params, f"predictor.predictor_blocks.{i}", x, PREDICTOR["heads"])
    x = layer_norm(rows(x, len(context) + np.arange(len(target))), *layer(params, "predictor.predictor_norm"))
    return linear(x, *layer(params, "predictor.predictor_proj"))

def image_loss(params, patches, context, targets, count):
    """One image's part of the loss: squared distances between predicted and actual features, over ``count``."""
    whole = encode(params, "target_encoder", patches, np.arange(N)).data  # the stop-gradient: a mere array from here on
    tape.clear()  # so there is no need to walk back over how it was made
    seen = encode(params, "context_encoder", patches, context)
    predicted = concat([predict(params, seen, context, target) for target in targets])
    return squared_distance(predicted, whole[np.concatenate(targets)], count)

def new_parameters(rng):
    """{name: Value} of all three networks. The target encoder begins as a copy of the context encoder."""
    params, wide, narrow, pixels = {}, ENCODER["width"], PREDICTOR["width"], 3 * PATCH**2
    def new(name, array):
        params[name] = Value(array.astype(np.float32))
    def new_layer(name, out, *into, std=0.02):  # a LayerNorm where it maps from nothing: its weights begin with 1
        new(name + ".weight", std * rng.standard_normal((out, *into)) if into else np.ones(out))
        new(name + ".bias", np.zeros(out))
    def new_blocks(name, width, depth, heads):
        sizes = {"norm1": [width], "attn.qkv": [3 * width, width], "attn.proj": [width, width],
                 "norm2": [width], "mlp.fc1": [4 * width, width], "mlp.fc2": [width, 4 * width]}  # fmt: skip
        for i in range(depth):
            for part, size in sizes.items():
                new_layer(f"{name}.{i}.{part}", *size)
    new_layer("context_encoder.patch_embed.proj", wide, pixels, std=1 / math.sqrt(pixels))
    new("context_encoder.pos_embed", 0.02 * rng.standard_normal((N, wide)))
    new_blocks("context_encoder.blocks", **ENCODER)
    new_layer("context_encoder.norm", wide)
    for name in list(params):
        new(name.replace("context", "target"), params[name].data)
    new_layer("predictor.predictor_embed", narrow, wide)
    new("predictor.mask_token", 0.02 * rng.standard_normal((1, narrow)))
    new("predictor.predictor_pos_embed", 0.02 * rng.standard_normal((N, narrow)))
    new_blocks("predictor.predictor_blocks", **PREDICTOR)
    new_layer("predictor.predictor_norm", narrow)
    new_layer("predictor.predictor_proj", wide, narrow)
    return params

# ---- the masks -------------------------------------------------------------------------------------------------------
def sample_block(rng, scale, aspect_ratio):
    """A random rectangle, as patch numbers. ``scale``: its part of the image; ``aspect_ratio``: width / height."""
    count, ratio = int(N * rng.uniform(*scale)), rng.uniform(*aspect_ratio)
    height = min(max(1, round(math.sqrt(count / ratio))), GRID)
    width = min(max(1, round(height * ratio)), GRID)
    top, left = rng.integers(GRID - height + 1), rng.integers(GRID - width + 1)
    return np.array([GRID * i + j for i in range(top, top + height) for j in range(left, left + width)])

def sample_masks(rng):
    """(context, targets) as patch numbers: the context is a large block without what four target blocks cover."""
    targets = [sample_block(rng, (0.15, 0.25), (0.75, 1.5)) for _ in range(4)]
    context = np.setdiff1d(sample_block(rng, (0.75, 0.95), (1, 1)), np.concatenate(targets))
    return (context, targets) if len(context) >= 4 else sample_masks(rng)

# ---- the training ----------------------------------------------------------------------------------------------------
def adamw(params, moments, step, lr, b1=0.9, b2=0.999, eps=1e-8):
    """m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,   w ← w − lr (m̂ / (√v̂ + ε) + λ w),   m̂ = m / (1 − β₁ᵗ)"""
    for name, (m, v) in moments.items():
        w, g = params[name].data, params[name].grad
        m += (1 - b1) * (g - m)
        v += (1 - b2) * (g * g - v)
        if name.endswith("weight") and w.ndim == 2:  # matrices decay; biases, norms and positions do not
            w *= 1 - lr * WEIGHT_DECAY
        w -= lr * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + eps)
        g[...] = 0  # gradients are only ever added to, so the next batch must find none

def train_step(params, moments, batch, masks, step, lr, momentum):
    """The sum of all images' gradients, AdamW, then the EMA. Returns the loss of the batch."""
    count, loss_of_batch = sum(len(target) for _, targets in masks for target in targets), 0.0
    for patches, (context, targets) in zip(batch, masks):
        loss = image_loss(params, patches, context, targets, count)
        walk_back(loss)
        loss_of_batch += loss.data
    adamw(params, moments, step, lr)
    for name, target in params.items():  # θ̄ ← momentum θ̄ + (1 − momentum) θ: the target encoder's only way to change
        if name.startswith("target"):
            target.data += (1 - momentum) * (params[name.replace("target", "context")].data - target.data)
    return loss_of_batch

def load_images(rng):
    """What they are, and many images as patches (B, N, 48), with mean 0 and variance 1."""
    what, file = "CIFAR-10", "data/cifar-10-batches-bin/data_batch_1.bin"
    if os.path.exists(file):  # records of a label and 3 × 32 × 32 pixels
        images = np.fromfile(file, np.uint8).reshape(-1, 3073)[:, 1:].astype(np.float32)
    else:
        what, images = "drawn shapes", np.array([drawn_shape(rng) for _ in range(2000)], np.float32)
    images = ((images - images.mean()) / images.std()).reshape(-1, 3, GRID, PATCH, GRID, PATCH)
    return what, images.transpose(0, 2, 4, 1, 3, 5).reshape(-1, N, 3 * PATCH**2)

def drawn_shape(rng):
    """A disc, a ring, a square or a cross, of one random colour on another: (3, 32, 32)"""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j] - rng.uniform(-0.5, 0.5, (2, 1, 1))
    size, colours = rng.uniform(0.3, 0.6), rng.uniform(size=(2, 3, 1, 1))
    square = np.maximum(abs(x), abs(y)) < size
    shapes = [np.hypot(x, y) < size, abs(np.hypot(x, y) - size) < 0.15, square, square & (abs(x * y) < 0.02)]
    return np.where(shapes[rng.integers(4)], *colours)

def main():
    parser = argparse.ArgumentParser(description="I-JEPA in one file.")
    parser.add_argument("steps", nargs="?", type=int, default=300)
    steps, rng = parser.parse_args().steps, np.random.default_rng(0)
    what, images = load_images(rng)
    params = new_parameters(rng)
    moments = {name: np.zeros((2, *p.data.shape), np.float32) for name, p in params.items() if "target" not in name}
    print(f"{len(images):,} images ({what}), {sum(v.size for _, v in moments.values()):,} trained parameters")
    start, losses = time.time(), []
    for step in range(1, steps + 1):
        lr = LEARNING_RATE * min(1, step / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        momentum = MOMENTUM + (1 - MOMENTUM) * step / steps
        batch, masks = images[rng.integers(len(images), size=BATCH)], [sample_masks(rng) for _ in range(BATCH)]
        losses.append(train_step(params, moments, batch, masks, step, lr, momentum))
        if step % 20 == 0:
            print(f"step {step:4}   loss {np.mean(losses[-20:]):6.2f}   after {time.time() - start:.0f} s")

if __name__ == "__main__":
    main()
