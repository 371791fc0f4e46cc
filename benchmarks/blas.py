#!/usr/bin/env python3
"""Which BLAS NumPy uses here, with which processor's kernels, and whether OPENBLAS_CORETYPE slows it down."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from minijepa.backend.threads import blas_info  # noqa: I001  (first: it holds BLAS to one thread before NumPy is loaded)
import numpy as np


def gflops(repeat=20):
    """Speed of the network's widest single-precision product on one core, in GFLOP/s: the best of ``repeat``."""
    a, b = np.ones((1024, 192), np.float32), np.ones((192, 768), np.float32)
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2e-9 * a.size * b.shape[1] / min(seconds)


def line():
    """``blas_info`` in one line. If OPENBLAS_CORETYPE is set, another process measures the speed without it."""
    info = blas_info()
    text = f"BLAS: {info['name']} {info['version']}"
    if info["kernel"]:
        text += f", {info['kernel']} kernels"
    if name := os.environ.get("OPENBLAS_CORETYPE"):
        free = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
        kernel, theirs = json.loads(subprocess.check_output([sys.executable, __file__, "--json"], env=free))
        if (ours := gflops()) < 0.9 * theirs:
            text += f": OPENBLAS_CORETYPE={name} slows it down, to {ours:.0f} of the {theirs:.0f} GFLOP/s of {kernel}"
    return text


if __name__ == "__main__":
    print(json.dumps([blas_info()["kernel"], gflops()]) if sys.argv[1:] == ["--json"] else line())
