"""Kernels run on the CPU: what CuPy's RawModule is on a GPU, for arrays of the host (see cuda_emulation.h).

The .cu text is compiled by g++ as it stands. Every array that a kernel is given lies between guard zones, which must
stay as they were.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minijepa.kernels.launcher import declarations

HERE = Path(__file__).parent
GUARD = 1024  # words before and after an array

RUNS_HERE = sys.platform == "linux"  # elsewhere, object files and contexts work otherwise
falling = False  # whether blocks, warps and lanes run in falling order: what depends on it is a mistake
launches = []  # the name of every kernel launched, for tests to look at


class KernelError(Exception):
    """A kernel or its launch is wrong."""


class Module:
    """As ``cupy.RawModule(code=..., options=...)``."""

    def __init__(self, code, options=()):
        self.compiled = library(code, tuple(o for o in options if o.startswith("-D")))
        self.declarations = declarations(code)

    def get_function(self, name):
        parameters = self.declarations[name]

        def launch(grid, block, arguments):
            run(self.compiled, name, parameters, grid, block, arguments)

        return launch


@cache
def _folder():
    folder = tempfile.TemporaryDirectory(prefix="minijepa-kernels-")  # removed at the process's end
    return folder, Path(folder.name)


def library(code, defines):
    """The shared library of a .cu text."""
    calls = "\n".join(map(_call, declarations(code).items()))
    return compiled(f'#include "{HERE}/cuda_emulation.h"\n{code}\n{calls}\n', *defines)


@cache
def compiled(text, *options):
    """The shared library of a C++ text, compiled once a process."""
    if not shutil.which("g++"):
        pytest.skip("g++ is missing, which compiles the kernels for the CPU: apt-get install g++")
    path = _folder()[1] / f"{len(os.listdir(_folder()[1]))}.cpp"
    path.write_text(text, encoding="utf-8")
    command = ["g++", "-std=c++17", "-O1", "-w", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", *options]
    done = subprocess.run([*command, "-o", path.with_suffix(".so"), path], capture_output=True, text=True)
    if done.returncode:
        raise KernelError(done.stderr)
    return ctypes.CDLL(str(path.with_suffix(".so")))


def fake_cublas(name):
    """A library that does what the manuals of cuBLAS and cuBLASLt say, on the host's memory."""
    assert name in ("cublas", "cublasLt")
    return compiled((HERE / "fake_cublas.cpp").read_text(encoding="utf-8"), "-O2")


def _call(declaration):
    """C++ that unpacks an array of pointers to arguments."""
    name, parameters = declaration
    values = ", ".join(f"{'*' * (not array)}({kind} *)args[{i}]" for i, (kind, array, _) in enumerate(parameters))
    return (
        f"static void call_{name}(void **args) {{ {name}({values}); }}\n"
        f'extern "C" const char *run_{name}(const int *grid, const int *block, void **args, int falling)\n'
        f"{{ return emulation::run(call_{name}, grid, block, args, falling); }}"
    )


def run(library, name, parameters, grid, block, arguments):
    """Run a kernel over copies of its arrays, each between guard zones, and copy back what it may have written."""
    guarded, pointers = {}, []
    for argument, (_, pointer, _) in zip(arguments, parameters, strict=True):
        if pointer and argument.ctypes.data not in guarded:  # an array may be given twice
            guarded[argument.ctypes.data] = _Guarded(argument, len(guarded))
        pointers.append(guarded[argument.ctypes.data] if pointer else np.array([argument]))
    addresses = (ctypes.c_void_p * len(pointers))(*(p.ctypes.data for p in pointers))
    triple = ctypes.c_int * 3
    function = getattr(library, f"run_{name}")
    function.restype = ctypes.c_char_p
    launches.append(name)
    error = function(triple(*grid, *[1] * (3 - len(grid))), triple(*block, *[1] * (3 - len(block))), addresses, falling)
    if error:
        raise KernelError(f"{name}: {error.decode()}")
    written = {a.ctypes.data for a, (_, pointer, const) in zip(arguments, parameters) if pointer and not const}
    for address, array in guarded.items():
        if not array.is_intact():
            raise KernelError(f"{name} wrote outside of an array of shape {array.array.shape}")
        if address in written:
            array.array[...] = array.inside


class _Guarded:
    """A copy of an array between two guard zones.

    Of ints: −1. Of floats: huge numbers, each array's its own, so that what is read outside shows in the result, and
    what is read outside of one array and written outside of another shows as well. (NaN would keep its bits.)
    """

    def __init__(self, array, number):
        self.array = array
        floats = array.dtype == np.float32
        self.word = np.float32(1e30 * (1 + number / 64)).view(np.uint32) if floats else np.uint32(0xFFFFFFFF)
        words = -(-array.nbytes // 4)
        self.memory = np.full(GUARD + words + GUARD, self.word)
        start = GUARD - self.memory.ctypes.data % 64 // 4  # an address that float4s can be read from
        self.before, inside, self.behind = np.split(self.memory, [start, start + words])
        self.inside = inside.view(np.uint8)[: array.nbytes].view(array.dtype).reshape(array.shape)
        self.inside[...] = array
        self.ctypes = self.inside.ctypes

    def is_intact(self):
        return bool((self.before == self.word).all() and (self.behind == self.word).all())
