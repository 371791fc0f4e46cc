#!/usr/bin/env python3
"""One training step, of the specification's config or another: minijepa against PyTorch, in one run on one machine.

    python benchmarks/step.py [--threads N] [--rounds N] [--preset NAME] [--alone] [--json]
    python benchmarks/step.py --mpi               # a run of N workers against N processes under mpiexec
    python benchmarks/step.py --device cuda       # the contenders of cuda_contenders.py: eager, compiled, CUDA graphs

Every contender is a process of its own; they take turns, one step at a time, so that a machine that slows down slows
all of them. Results are medians. PyTorch may also use micro-batches; its best size counts. Without torch, only minijepa
is measured. The ceiling is the speed of single-precision matrix products of the network's shapes, on as many threads,
measured in the same run; ``gemm_share`` is the part of the step's time that its matrix products would take at that
speed.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from minijepa import backend  # noqa: I001  (first: it holds BLAS to one thread before NumPy is loaded)
import numpy as np

import blas
import cuda_contenders
from cuda_contenders import noise, noise_trainer
from minijepa import Config, MultiBlockMasker
from minijepa.config import PRESETS
from minijepa.data import normalise
from minijepa.backend.threads import available_cores, blas_info, on_threads
from minijepa.training import mpi
from minijepa.training.lanes import LANES

MICRO = (32, 64, 128)  # 256 was never the fastest on a CPU, and takes gigabytes
KINDS = ("padded", "sorted", "shared", "encode")  # of PyTorch contenders


# ---------------------------------------------------------------------------------------------------------- contenders
# Each is a generator function: set up, then do one unit of work for every next(), and yield what to report about it.


def minijepa_step(config, threads):
    trainer = noise_trainer(config, 4, "cpu", threads)
    step = 0
    yield {}
    while True:
        trainer.train_step(step)
        step += 1
        yield {}


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


def flops_an_image(config):
    """Floating-point operations of the matrix products in a training step, and in encoding, for one image."""
    trainer, images = noise_trainer(config, 1), noise(config.batch_size)
    step = counted_flops(lambda: trainer.train_step(0))
    return step / len(images), counted_flops(lambda: trainer.model.features(images, threads=1)) / len(images)


def counted_flops(work):
    """Floating-point operations of all matrix products in ``work()``."""
    total, real, lock = 0, backend.matmul, threading.Lock()

    def counting(a, b, out=None):
        nonlocal total
        y = real(a, b, out)
        with lock:
            total += 2 * y.size * a.shape[-1]
        return y

    patched = [m for name, m in sys.modules.items() if name.startswith("minijepa") and vars(m).get("matmul") is real]
    for module in patched:
        module.matmul = counting
    work()
    for module in patched:
        module.matmul = real
    return total


def torch_step(config, threads, masking, micro):
    """``masking``: "padded", "sorted" (padded, images of similar context length in one micro-batch) or "shared"."""
    import torch
    from torch_ijepa import TorchIJEPA

    torch.set_num_threads(threads)
    model = TorchIJEPA(config)
    images = torch.from_numpy(normalise(noise(config.batch_size), (0.5,) * 3, (0.25,) * 3))
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


def minijepa_encode(config, threads):
    from minijepa import IJEPA

    model, images = IJEPA(config), noise(config.batch_size)
    yield {}
    while True:
        model.features(images, threads=threads)
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
                encoder(torch.from_numpy(normalise(images[i : i + micro], (0.5,) * 3, (0.25,) * 3))).mean(1)
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


def contenders(preset, threads, alone):
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


# --------------------------------------------------------------------------------------------------------- the contest


def worker(function, arguments):
    """A contender's process: for each line on stdin, one unit of work, and a line of JSON on stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what is told on the way goes to stderr
    functions = vars(cuda_contenders) if hasattr(cuda_contenders, function) else globals()
    work = functions[function](Config.preset(arguments.pop("preset", "cifar10")), **arguments)
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


class ContenderFailed(SystemExit):
    def __init__(self, status):
        why = "the system killed it: too little memory?" if status == -9 else "see its traceback above"
        super().__init__(f"a contender failed: {why}")


class Contender:
    def __init__(self, function, arguments, limit=None, launcher=()):
        command = [*launcher, sys.executable, __file__, "--worker", json.dumps([function, arguments])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.timer = threading.Timer(limit or 1e6, self.process.kill)
        self.timer.daemon = True
        self.timer.start()
        self.start = self._answer()
        self.results = []

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise ContenderFailed(self.process.wait())
        return json.loads(line)

    def turn(self):
        with contextlib.suppress(BrokenPipeError):  # it has died: _answer says how
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        self.results.append(self._answer())

    def median(self, key="seconds"):
        return statistics.median(result[key] for result in self.results)

    def end(self):
        self.timer.cancel()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def mpi_contest(preset, threads, rounds, as_json):
    """A run of so many workers against so many processes under mpiexec, and both against one worker."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not (mpiexec and importlib.util.find_spec("mpi4py")):
        sys.exit("step.py: --mpi needs mpi4py and an MPI: pip install -r requirements-mpi.txt")

    def contender(threads, count):
        arguments = {"preset": preset, "threads": threads, "wanted": count > 1}
        return Contender("minijepa_together", arguments, launcher=[mpiexec, "-n", str(count)] if count > 1 else [])

    runs = {"workers": contender(threads, 1), "ranks": contender(1, threads), "one": contender(1, 1)}
    for _ in range(rounds):
        for run in runs.values():
            run.turn()
    for run in runs.values():
        run.end()
    if len({run.results[-1]["checksum"] for run in runs.values()}) > 1:
        sys.exit("step.py: their weights differ")
    batch = Config.preset(preset).batch_size
    result = {f"img_s_{name}": batch / run.median() for name, run in runs.items()}
    result |= {"ratio": result["img_s_ranks"] / result["img_s_workers"], "count": threads, "rounds": rounds}
    result["turns"] = {name: [round(turn["seconds"], 3) for turn in run.results] for name, run in runs.items()}
    if as_json:
        print(json.dumps(result))
        return
    print(blas.line())
    print(f"{preset}, batch {batch}, medians of {rounds} steps, taking turns; all end with the same weights")
    for name, text in (("workers", f"{threads} workers"), ("ranks", f"mpiexec -n {threads}"), ("one", "1 worker")):
        print(f"{text:24}{result[f'img_s_{name}']:8.1f} img/s")
    print(f"mpiexec / workers: {result['ratio']:.2f}")


def best(runs, prefix):
    """(micro-batch, contender) of the fastest whose name starts with ``prefix``; None without torch."""
    found = {name: c for name, c in runs.items() if name.startswith(prefix)}
    return min(found.items(), key=lambda item: item[1].median()) if found else None


def cuda_contest(rounds, device, limit):
    """({name: contender} after its turns, the names of those that failed, which showed their tracebacks)."""
    runs, failed = {}, []
    torch = importlib.util.find_spec("torch")
    for name, (function, arguments) in cuda_contenders.CONTENDERS.items():
        if ("torch" in name and not torch) or (name == "ceilings" and device != "cuda"):
            continue
        try:  # one contender after the other, so that each has the GPU's memory to itself
            contender = Contender(function, {**arguments, "device": device}, limit)
            for _ in range(rounds):
                contender.turn()
            contender.end()
            runs[name] = contender
            print(f"{name}: {1e3 * contender.median() / contender.start['steps']:.2f} ms", file=sys.stderr)
        except ContenderFailed as error:
            failed.append(name)
            print(f"{name}: {error} (or it took more than {limit:g} s)", file=sys.stderr)
    return runs, failed


def cuda_report(runs, rounds, device, as_json):
    """Milliseconds a step, 100 epochs' worth of them, and how we compare."""
    batch, steps = Config().batch_size, 100 * (50_000 // Config().batch_size)
    ceilings = runs.pop("ceilings", None)
    ms = {name: 1e3 * c.median() / c.start["steps"] for name, c in runs.items()}
    result = {name.replace(",", "").replace(" ", "_") + "_ms": value for name, value in ms.items()}
    ours = ms.get("minijepa")
    if ours:
        others = [name for name in ms if name != "minijepa"]
        result |= {f"ratio_{name.replace(',', '').replace(' ', '_')}": ms[name] / ours for name in others}
    if ceilings:
        result |= {name: ceilings.median(name) for name in ("bytes_per_s", "flops_per_s")}
    if as_json:
        print(json.dumps(result))
        return
    print(f"batch {batch}, TF32, medians of {rounds} turns of {cuda_contenders.STEPS[device]} steps")
    print(f"{'':30}{'ms/step':>9}{'img/s':>9}{'100 epochs':>12}{'memory MB':>11}{'ours is':>10}")
    for name, c in runs.items():
        row = f"{name:30}{ms[name]:9.2f}{1e3 * batch / ms[name]:9.0f}{steps * ms[name] / 1e3:10.0f} s"
        print(row + f"{c.median('memory_mb'):11.0f}" + (f"{ms[name] / ours:9.2f}x" if ours else ""))
    if ceilings:
        bandwidth, rate = ceilings.median("bytes_per_s"), ceilings.median("flops_per_s")
        print(f"this GPU: {bandwidth / 1e12:.2f} TB/s in a copy, {rate / 1e12:.0f} TFLOP/s in large TF32 products")
    if not importlib.util.find_spec("torch"):
        print("torch is not installed: minijepa was measured alone")


def main():
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("--threads", type=int, default=available_cores(), help="default: one for each core")
    p.add_argument("--rounds", type=int, default=7, help="turns of each contender (default: 7)")
    p.add_argument("--preset", choices=PRESETS, default="cifar10", help="the network, on a CPU (default: cifar10)")
    p.add_argument("--alone", action="store_true", help="on a CPU, without PyTorch even if it is installed")
    p.add_argument("--json", action="store_true", help="print one line of JSON instead of tables")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    p.add_argument("--mpi", action="store_true", help="workers against mpiexec, alone (needs requirements-mpi.txt)")
    p.add_argument("--limit", type=float, metavar="S", default=150, help="on a GPU: seconds a contender may take")
    p.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)  # the CUDA contenders, on a CPU
    p.add_argument("--worker", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        return worker(*json.loads(args.worker))
    if min(args.threads, args.rounds) < 1:
        p.error("--threads and --rounds: at least 1")
    if args.device == "cuda" and (args.alone or args.preset != "cifar10"):
        p.error("--alone and --preset are for the CPU: leave them out with --device cuda")
    if args.mpi and (args.device == "cuda" or not 2 <= args.threads <= LANES):
        p.error(f"--mpi is for a CPU, and 2 to {LANES} --threads")
    if args.mpi:
        return mpi_contest(args.preset, args.threads, args.rounds, args.json)

    if args.device == "cuda" or args.rehearse:
        device = "cpu" if args.rehearse else backend.resolve_device("cuda")
        runs, failed = cuda_contest(args.rounds, device, args.limit)
        cuda_report(runs, args.rounds, device, args.json)
        return int(bool(failed))

    batch = Config.preset(args.preset).batch_size
    runs = {}
    for name, contender in contenders(args.preset, args.threads, args.alone).items():
        runs[name] = Contender(*contender)
    for _ in range(args.rounds):
        for contender in runs.values():
            contender.turn()
    for contender in runs.values():
        contender.end()

    ours = runs["minijepa"]
    speed = {name: batch / c.median() for name, c in runs.items() if not name.startswith("gemm")}
    ceiling = runs["gemm"].median("flops_per_s")
    flops, encode_flops = flops_an_image(Config.preset(args.preset))
    result = {
        "blas": blas_info(), "threads": args.threads, "rounds": args.rounds, "img_s": speed["minijepa"],
        "encode_img_s": speed["minijepa encode"], "gflop_per_image": flops / 1e9, "gemm_gflop_s": ceiling / 1e9,
        "gemm_share": speed["minijepa"] * flops / ceiling, "peak_mb": ours.median("peak_mb"),
        "step_mb": ours.median("step_mb"),
        "encode_gflop_per_image": encode_flops / 1e9,
        "encode_gemm_share": speed["minijepa encode"] * encode_flops / ceiling,
    }  # fmt: skip
    if args.threads > 1:
        one = speed["minijepa, 1 thread"]
        result |= {
            "img_s_1_thread": one, "gemm_share_1_thread": one * flops / runs["gemm, 1 thread"].median("flops_per_s"),
            "threads_speedup": speed["minijepa"] / one,
        }  # fmt: skip
    for kind in KINDS:
        result |= {f"torch_{kind}_img_s": None, f"ratio_{kind}": None}  # without torch
        if found := best(runs, f"torch {kind}"):
            name, contender = found
            result |= {
                f"torch_{kind}_img_s": speed[name], f"torch_{kind}_micro_batch": int(name.split()[-1]),
                f"torch_{kind}_peak_mb": contender.median("peak_mb"),
                f"torch_{kind}_step_mb": contender.median("step_mb"),
                f"ratio_{kind}": speed["minijepa encode" if kind == "encode" else "minijepa"] / speed[name],
            }  # fmt: skip
    if args.json:
        print(json.dumps(result))
        return None
    print(blas.line())
    print(f"{args.preset}, batch {batch}, --threads {args.threads}, medians of {args.rounds} steps, taking turns")
    print(f"{'':24}{'img/s':>8}{'peak MB':>9}{'of the step':>13}")
    for name, c in runs.items():
        if name in speed:
            print(f"{name:24}{speed[name]:8.1f}{c.median('peak_mb'):9.0f}{c.median('step_mb'):13.0f}")
    print(f"matrix products: {flops / 1e9:.2f} GFLOP an image; {ceiling / 1e9:.0f} GFLOP/s is this machine's ceiling,")
    shares = [f"{100 * result[name]:.0f}%" for name in ("gemm_share", "encode_gemm_share")]
    print(f"at which they would take {shares[0]} of minijepa's step and {shares[1]} of its encoding")
    if args.threads > 1:
        print(f"one worker: {100 * result['gemm_share_1_thread']:.0f}% of its own ceiling;", end=" ")
        print(f"{args.threads} workers are {result['threads_speedup']:.2f} times as fast")
    if not result["ratio_padded"]:
        print("minijepa was measured alone" + ("" if args.alone else ": torch is not installed"))
    for kind in KINDS:
        if result[f"ratio_{kind}"]:
            micro = result[f"torch_{kind}_micro_batch"]
            print(f"minijepa / torch {kind:7} {result[f'ratio_{kind}']:5.2f}   (its best micro-batch: {micro})")
    return None


if __name__ == "__main__":
    sys.exit(main())
