"""I-JEPA in your own loop, on drawn shapes: python -m examples.train (half a minute)"""

import numpy as np

from minijepa import IJEPA, Config, MultiBlockMasker, Tape, ops
from minijepa.data import make_shapes
from minijepa.training.ema import update_ema
from minijepa.training.optim import AdamW

model = IJEPA(Config.preset("smoke"))
masker = MultiBlockMasker()
optimizer = AdamW(model.flat.data, model.flat.grad, model.decayed, weight_decay=0.05)
images, rng = make_shapes(4000)[0], np.random.default_rng(0)  # or load_cifar10("data", "train")[0]

for step in range(201):
    batch = model.normalise(images[rng.integers(len(images), size=64)])
    masks = masker.sample(len(batch), rng)
    targets = model.targets(batch, masks)  # no tape runs here: no gradient can flow
    with Tape() as tape:
        loss = ops.l2_loss(model.predictions(batch, masks), targets)
    tape.backward(loss)
    optimizer.step(lr=1e-3)
    model.zero_grad()
    update_ema(model.target_flat.data, model.flat.data[: model.encoder_size], momentum=0.99)
    if step % 20 == 0:
        print(f"step {step:4}   loss {loss.item():6.2f}")
