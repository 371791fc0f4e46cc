"""Contenders of ``step.py --device cuda``: generator functions, as in step.py, whose unit of work is STEPS steps.

PyTorch has the advantage: its images, indices and key masks are on the GPU before the clock starts, while minijepa's
time includes drawing masks and augmentation. Both use TF32. ``mode``: "eager"; "compiled" (torch.compile); "graphs"
(the same with mode="reduce-overhead", which replays CUDA graphs). What is compiled gets batches padded to one shape:
with dynamic shapes, torch 2.11's compiler ends in an error on a GPU.
"""

import numpy as np

from minijepa import MultiBlockMasker, backend
from minijepa.data import Dataset, normalise
from minijepa.training.trainer import Trainer

STEPS = {"cuda": 50, "cpu": 1}  # per turn; on a CPU it is a rehearsal
PREPARED = 8  # batches that PyTorch cycles through


def noise(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)


def noise_trainer(config, batches, device="cpu", threads=1, ranks=None):
    """A Trainer on this many batches of noise."""
    images = noise(batches * config.batch_size)
    labels = np.zeros(len(images), np.uint8)
    data = Dataset("noise", ("noise",), images, labels, images[:1], labels[:1], (0.5,) * 3, (0.25,) * 3)
    return Trainer(config, data, device, threads, ranks=ranks)


def minijepa_cuda_step(config, device="cuda"):
    """Training as ``train.py`` does it, from uint8 images on the GPU to the target encoder's EMA."""
    if device == "cuda":
        backend.set_precision("tf32")
    trainer, step = noise_trainer(config, 16, device), 0
    yield {"steps": STEPS[device]}
    while True:
        for _ in range(STEPS[device]):
            trainer.collect(step, trainer.train_step(step))
            step += 1
        trainer.read()  # waits for the GPU
        yield {"memory_mb": _memory(trainer) / 2**20 if device == "cuda" else 0}


def _memory(trainer):
    """Bytes of the pools that arrays come from."""
    pools = [backend.cupy.get_default_memory_pool()] + ([trainer.graph.pool] if trainer.graph else [])
    return sum(pool.total_bytes() for pool in pools)


def torch_cuda_step(config, mode, device="cuda"):
    import torch
    from torch_ijepa import TorchIJEPA, padded_masks

    torch.set_float32_matmul_precision("high")  # TF32
    model = TorchIJEPA(config, device)
    images = torch.from_numpy(normalise(noise(config.batch_size), (0.5,) * 3, (0.25,) * 3)).to(device)
    masker, draw = MultiBlockMasker.of(config), np.random.default_rng(0)
    drawn = [masker.sample(config.batch_size, draw) for _ in range(PREPARED)]
    size = None
    if mode != "eager":  # the longest of all, as a fixed capacity
        size = max(m.context_lengths.max() for m in drawn), max(m.target_lengths.max() for m in drawn)
    batches = [[t.to(device) for t in padded_masks(masks, size)] for masks in drawn]
    counts = [float(masks.target_lengths.sum()) for masks in drawn]
    loss_of = model.loss
    if mode != "eager":
        loss_of = torch.compile(model.loss, dynamic=False, mode="reduce-overhead" if mode == "graphs" else None)
    yield {"steps": STEPS[device]}
    while True:
        for i in range(STEPS[device]):
            model.optimizer.zero_grad(set_to_none=True)
            (loss_of(images, batches[i % PREPARED]) / counts[i % PREPARED]).backward()
            model.update()
        memory = 0
        if device == "cuda":
            torch.cuda.synchronize()
            memory = torch.cuda.max_memory_reserved() / 2**20
        yield {"memory_mb": memory}


def ceilings(config, device="cuda"):
    """The GPU's peak: bytes a second of a long copy, operations a second of large TF32 products."""
    import time

    cupy = backend.cupy
    backend.set_precision("tf32")
    a, b = (cupy.ones((8192, 8192), np.float32) for _ in range(2))
    out, copy = cupy.empty_like(a), cupy.empty_like(a)

    def seconds(function, repeat=20):
        function()
        cupy.cuda.get_current_stream().synchronize()
        started = time.perf_counter()
        for _ in range(repeat):
            function()
        cupy.cuda.get_current_stream().synchronize()
        return (time.perf_counter() - started) / repeat

    while True:
        yield {
            "steps": 1,
            "bytes_per_s": 2 * a.nbytes / seconds(lambda: copy.__setitem__(..., a)),
            "flops_per_s": 2 * 8192**3 / seconds(lambda: backend.matmul(a, b, out=out)),
        }


CONTENDERS = {  # name: function, arguments
    "ceilings": ("ceilings", {}),
    "minijepa": ("minijepa_cuda_step", {}),
    "torch eager": ("torch_cuda_step", {"mode": "eager"}),
    "torch compiled": ("torch_cuda_step", {"mode": "compiled"}),
    "torch compiled, CUDA graphs": ("torch_cuda_step", {"mode": "graphs"}),
}
