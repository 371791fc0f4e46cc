#!/usr/bin/env python3
"""One training step, of the specification's config or another: minijepa against PyTorch, in one run on one machine.

    python benchmarks/step.py [--threads N] [--rounds N] [--preset NAME] [--alone] [--json]
    python benchmarks/step.py --mpi               # a run of N workers against N processes under mpiexec
    python benchmarks/step.py --device cuda       # against PyTorch: eager, compiled, CUDA graphs

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
import shutil
import statistics
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import blas
import contenders
from contenders import noise, noise_trainer

from minijepa import Config, backend
from minijepa.backend.threads import available_cores, blas_info
from minijepa.config import PRESETS
from minijepa.training.lanes import LANES

KINDS = ("padded", "sorted", "shared", "encode")  # of PyTorch contenders


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


class ContenderFailed(SystemExit):
    def __init__(self, status):
        why = "the system killed it: too little memory?" if status == -9 else "see its traceback above"
        super().__init__(f"a contender failed: {why}")


class Contender:
    def __init__(self, function, arguments, limit=None, launcher=()):
        command = [*launcher, sys.executable, contenders.__file__, json.dumps([function, arguments])]
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


def take_turns(runs, rounds):
    """So many turns of each contender, one after the other, and then their ends."""
    for _ in range(rounds):
        for contender in runs.values():
            contender.turn()
    for contender in runs.values():
        contender.end()


def mpi_contest(preset, threads, rounds, as_json):
    """A run of so many workers against so many processes under mpiexec, and both against one worker."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not (mpiexec and importlib.util.find_spec("mpi4py")):
        sys.exit("step.py: --mpi needs mpi4py and an MPI: pip install -r requirements-mpi.txt")

    def contender(threads, count):
        arguments = {"preset": preset, "threads": threads, "wanted": count > 1}
        return Contender("minijepa_together", arguments, launcher=[mpiexec, "-n", str(count)] if count > 1 else [])

    runs = {"workers": contender(threads, 1), "ranks": contender(1, threads), "one": contender(1, 1)}
    take_turns(runs, rounds)
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


def cpu_report(runs, args):
    """Images a second, memory, the share of matrix products, and how we compare with PyTorch."""
    batch = Config.preset(args.preset).batch_size
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
        return
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


def best(runs, prefix):
    """(name, contender) of the fastest whose name starts with ``prefix``; None without torch."""
    found = {name: c for name, c in runs.items() if name.startswith(prefix)}
    return min(found.items(), key=lambda item: item[1].median()) if found else None


def cuda_contest(rounds, device, limit):
    """({name: contender} after its turns, the names of those that failed, which showed their tracebacks)."""
    runs, failed = {}, []
    torch = importlib.util.find_spec("torch")
    for name, (function, arguments) in contenders.ON_GPU.items():
        if ("torch" in name and not torch) or (name == "ceilings" and device != "cuda"):
            continue
        try:  # one contender after the other, so that each has the GPU's memory to itself
            contender = Contender(function, {**arguments, "device": device}, limit)
            take_turns({name: contender}, rounds)
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
    print(f"batch {batch}, TF32, medians of {rounds} turns of {contenders.STEPS[device]} steps")
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
    args = p.parse_args()
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
    runs = {name: Contender(*c) for name, c in contenders.on_cpu(args.preset, args.threads, args.alone).items()}
    take_turns(runs, args.rounds)
    cpu_report(runs, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
