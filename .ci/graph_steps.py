"""Thirty steps of a tiny network on a GPU, nearly all of them as one CUDA graph, against the same steps on the CPU."""

from minijepa import Config
from minijepa.data import Dataset, make_shapes
from minijepa.training.trainer import Trainer

CONFIG = Config(
    encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=8, predictor_depth=1,
    predictor_num_heads=2, patch_size=8, min_context=2, batch_size=8, epochs=10, warmup_epochs=1,
)  # fmt: skip
images, labels = make_shapes(64)
data = Dataset("shapes", ("",) * 10, images, labels, images[:8], labels[:8], (0.5,) * 3, (0.25,) * 3)
sums = {}
for device in ("cpu", "cuda"):
    trainer = Trainer(CONFIG, data, device)
    for step in range(30):
        trainer.collect(step, trainer.train_step(step))
    trainer.read()
    sums[device] = trainer.progress.sums
    print(device, sums[device])
assert trainer.graph.graph is not None, "no graph was recorded"
for name, value in sums["cpu"].items():
    assert abs(sums["cuda"][name] - value) <= 1e-5 * abs(value), name
