"""The contenders of ``step.py``, each in a process of its own: python contenders.py '["gemm", {"threads": 2}]'

Each is a generator function: set up, then do one unit of work for every next(), and yield what to report about it. A
unit is a step, or STEPS steps of what ``step.py --device cuda`` compares. There, PyTorch has the advantage: its images,
indices and key masks are on the GPU before the clock starts, while minijepa's time includes drawing masks and
batches. Both use TF32. ``mode``: "eager"; "compiled" (torch.compile); "graphs" (the same with mode="reduce-overhead",
which replays CUDA graphs). What is compiled gets batches padded to one shape: with dynamic shapes, torch 2.11's
compiler ends in an error on a GPU.
"""

import importlib.util
import json
import os
import resource
import sys
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from minijepa import IJEPA, Config, MultiBlockMasker, backend  # noqa: I001  (before NumPy: it holds BLAS to one thread)
import numpy as np

from minijepa.backend.threads import on_threads
from minijepa.data import Dataset, normalise
from minijepa.training import mpi
from minijepa.training.trainer import Trainer

MICRO = (32, 64, 128)  # 256 was never the fastest on a CPU, and takes gigabytes
STEPS = {"cuda": 50, "cpu": 1}  # per turn
CHANNELS = (0.5,) * 3, (0.25,) * 3  # mean and deviation of the noise, roughly
PREPARED = 8  # batches that PyTorch cycles through on a GPU


def on_cpu(preset, threads, alone):
    """{name: (function, its arguments)}; ``alone``: without PyTorch's."""
    found = {"minijepa": ("minijepa_step", {}), "minijepa encode": ("minijepa_encode", {}), "gemm": ("gemm", {})}
    if threads > 1:
        found["minijepa, 1 thread"] = ("minijepa_step", {"threads": 1})
        found["gemm, 1 thread"] = ("gemm", {"threads": 1})
    if importlib.util.find_spec("torch") and not alone:
        for micro in MICRO:
            for masking in ("padded", "sorted", "shared"):
                found[f"torch {masking} {micro}"] = ("torch_step", {"masking": masking, "micro": micro})
            found[f"torch encode {micro}"] = ("torch_encode", {"micro": micro})
    common = {"preset": preset, "threads": threads}
    return {name: (function, {**common, **arguments}) for name, (function, arguments) in found.items()}


ON_GPU = {
    "ceilings": ("ceilings", {}),
    "minijepa": ("minijepa_step", {}),
    "torch eager": ("torch_cuda_step", {"mode": "eager"}),
    "torch compiled": ("torch_cuda_step", {"mode": "compiled"}),
    "torch compiled, CUDA graphs": ("torch_cuda_step", {"mode": "graphs"}),
}


def noise(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)


def noise_trainer(config, batches, device="cpu", threads=1, ranks=None):
    """A Trainer on this many batches of noise."""
    images = noise(batches * config.batch_size)
    labels = np.zeros(len(images), np.uint8)
    data = Dataset("noise", ("noise",), images, labels, images[:1], labels[:1], *CHANNELS)
    return Trainer(config, data, device, threads, ranks=ranks)


def minijepa_step(config, threads=1, device="cpu"):
    """Training as ``train.py`` does it, from uint8 images (on the GPU) to the target encoder's EMA."""
    if device == "cuda":
        backend.set_precision("tf32")
    trainer, step = noise_trainer(config, 16 if device == "cuda" else 4, device, threads), 0
    yield {"steps": STEPS[device]}
    while True:
        for _ in range(STEPS[device]):
            trainer.collect(step, trainer.train_step(step))
            step += 1
        trainer.read()  # waits for the GPU
        yield {"memory_mb": _memory(trainer) / 2**20}


def _memory(trainer):
    """Bytes of the pools that a GPU's arrays come from; 0 on a CPU."""
    if trainer.device == "cpu":
        return 0
    pools = [backend.cupy.get_default_memory_pool()] + ([trainer.graph.pool] if trainer.graph else [])
    return sum(pool.total_bytes() for pool in pools)


def minijepa_together(config, threads, wanted):
    """A step in the processes that mpiexec has started, or in one if MPI is not ``wanted``."""
    with mpi.joined(wanted, "cpu") as ranks:
        trainer, step = noise_trainer(config, 4, "cpu", threads, ranks), 0
        if ranks.rank == 0:
            yield {}
        try:
            while _all_turn(ranks, True):
                trainer.train_step(step)
                step += 1
                if ranks.rank == 0:
                    yield {"checksum": zlib.crc32(trainer.model.flat.data)}
        finally:
            if ranks.rank == 0:
                _all_turn(ranks, False)
        sys.exit()  # the ranks above 0, which report nothing


def _all_turn(ranks, more):
    """Rank 0's ``more``; the other ranks sleep until it is known, so that other contenders have the cores."""
    if ranks.size == 1:
        return more
    word = np.array([more])
    request = ranks.comm.Ibcast(word)
    while not request.Test():
        time.sleep(0.0005)
    return bool(word[0])


def minijepa_encode(config, threads):
    model, images = IJEPA(config), noise(config.batch_size)
    yield {}
    while True:
        model.features(images, threads=threads)
        yield {}


def torch_step(config, threads, masking, micro):
    """``masking``: "padded", "sorted" (padded, images of similar context length in one micro-batch) or "shared"."""
    import torch
    from torch_ijepa import TorchIJEPA

    torch.set_num_threads(threads)
    model = TorchIJEPA(config)
    images = torch.from_numpy(normalise(noise(config.batch_size), *CHANNELS))
    masker, draw = MultiBlockMasker.of(config), np.random.default_rng(0)
    shared = masking == "shared"
    yield {}
    while True:
        if shared:
            masks = masker.sample(1, draw)
            while len(set(masks.target_lengths.ravel().tolist())) > 1:  # blocks of one size need no padding
                masks = masker.sample(1, draw)
        else:
            masks = masker.sample(len(images), draw)
        if masking == "sorted":
            order = np.argsort(masks.context_lengths)
            images, masks = images[torch.from_numpy(order)], masks.select(order)
        model.step(images, masks, micro, shared)
        yield {}


def torch_encode(config, threads, micro):
    import torch
    from torch_ijepa import Encoder

    torch.set_num_threads(threads)
    encoder, images = Encoder(config).eval(), noise(config.batch_size)
    yield {}
    while True:
        with torch.inference_mode():
            for i in range(0, len(images), micro):
                encoder(torch.from_numpy(normalise(images[i : i + micro], *CHANNELS))).mean(1)
        yield {}


def gemm(config, threads):
    """Matrix products of the encoder's shapes for a chunk of images, on each thread; reports operations a second."""
    dim, rows = config.encoder_embed_dim, 16 * config.num_patches
    draw = np.random.default_rng(0)
    pairs = [
        (draw.standard_normal((rows, n), np.float32), draw.standard_normal((n, m), np.float32))
        for n, m in ((dim, 3 * dim), (dim, dim), (dim, 4 * dim), (4 * dim, dim))
    ]
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in pairs)
    repeat = 40

    def work(_):
        outs = [np.empty((a.shape[0], b.shape[1]), np.float32) for a, b in pairs]
        for _ in range(repeat):
            for (a, b), out in zip(pairs, outs):
                np.matmul(a, b, out=out)

    while True:
        started = time.perf_counter()
        on_threads(work, range(threads), threads)
        yield {"flops_per_s": threads * repeat * flops / (time.perf_counter() - started)}


def torch_cuda_step(config, mode, device="cuda"):
    import torch
    from torch_ijepa import TorchIJEPA, padded_masks

    torch.set_float32_matmul_precision("high")  # TF32
    model = TorchIJEPA(config, device)
    images = torch.from_numpy(normalise(noise(config.batch_size), *CHANNELS)).to(device)
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


def worker(function, arguments):
    """A contender's process: for each line on stdin, one unit of work, and a line of JSON on stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what is told on the way goes to stderr
    work = globals()[function](Config.preset(arguments.pop("preset", "cifar10")), **arguments)
    extra = next(work)
    before = peak_mb()
    extra |= next(work)  # warm up
    print(json.dumps(extra), file=answers, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        extra = next(work)
        seconds = time.perf_counter() - started
        peak = peak_mb()
        report = {"seconds": seconds, "peak_mb": peak, "step_mb": peak - before}
        print(json.dumps({**report, **extra}), file=answers, flush=True)
    work.close()


def peak_mb():
    """Peak memory in MB. With worker processes, what all of them have now, which they never give back.

    Pages that several processes share count once.
    """
    alone = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    workers = Path(f"/proc/self/task/{os.getpid()}/children")
    if not (workers.exists() and workers.read_text()):
        return alone
    processes = ["self", *workers.read_text().split()]
    texts = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes]
    return sum(int(text.split("Pss:")[1].split()[0]) for text in texts) / 1024


if __name__ == "__main__":
    worker(*json.loads(sys.argv[1]))
