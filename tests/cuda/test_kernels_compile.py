"""Every kernel by NVIDIA's own compiler, for GPUs from Turing to Hopper: no spilled registers, little shared memory."""

import ctypes
import re
import sys
from functools import cache
from pathlib import Path

import pytest

from minijepa.kernels import launcher
from minijepa.kernels.launches import HEAD_DIMS

ARCHITECTURES = ["sm_75", "sm_80", "sm_90"]
FILES = {path.stem for path in launcher.FOLDER.glob("*.cu")}
VARIANTS = [
    *((file, {}) for file in sorted(FILES - {"attention", "layer_norm"})),
    *(("layer_norm", {"WIDTH": n}) for n in (96, 192, 512)),
    *(("attention", {"HEAD_DIM": d, "PARTS": HEAD_DIMS[d]}) for d in (8, 16, 32, 48, 64)),
]
LARGEST_BLOCK = {"sum_partials": 1024, "gather_sum": 1024}  # threads; 256 elsewhere

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NVIDIA's compiler comes as a Linux package")


# NVIDIA's compiler without a GPU: the package nvidia-cuda-nvrtc, called through ctypes


@cache
def library():
    for folder in map(Path, sys.path):
        found = sorted(folder.glob("nvidia/c*/lib/libnvrtc.so.*"))  # cu13, or cuda_nvrtc of CUDA 12
        for path in (p for p in found if ".alt." not in p.name):
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                if ".alt." not in builtins.name:
                    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # which nvrtc looks for by name
            return ctypes.CDLL(str(path))
    pytest.skip("NVIDIA's compiler is missing (it needs no GPU): pip install -r requirements-test.txt")


def compiled(source, options, architecture):
    """{kernel: {"registers": ..., "shared": bytes, "spills": bytes}}, as its assembler reports. Errors are raised."""
    nvrtc, program = library(), ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    options = [f"-arch={architecture}", "--ptxas-options=-v", *CUPY_ADDS, *options]
    words = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), words)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    text = log.value.decode()
    assert not failed, text
    kernels = {}
    for part in text.split("Compiling entry function")[1:]:
        name = re.match(r" '(\w+)'", part)[1]
        number = {word: re.search(pattern, part) for word, pattern in PATTERNS.items()}
        kernels[name] = {word: int(found[1]) if found else 0 for word, found in number.items()}
    return kernels


CUPY_ADDS = ["-ftz=true", "--device-as-default-execution-space"]
PATTERNS = {
    "registers": r"Used (\d+) registers",
    "shared": r"(\d+) bytes smem",
    "stack": r"(\d+) bytes stack frame",
    "spills": r"(\d+) bytes spill stores",
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills(architecture):
    for file, constants in VARIANTS:
        kernels = compiled(launcher.source(file), launcher.options(**constants), architecture)
        assert kernels.keys() == launcher.declarations(launcher.source(file)).keys()
        for name, found in kernels.items():
            print(architecture, file, constants, name, found)
            assert found["spills"] == found["stack"] == 0, (name, constants, found)
            assert found["registers"] * LARGEST_BLOCK.get(name, 256) <= 65536, (name, constants, found)
            assert found["shared"] <= 20_000, (name, constants, found)  # of 48 KB


def test_the_text_is_plain_ascii():
    assert all(launcher.source(file).isascii() for file in FILES)


def test_a_spill_or_an_error_is_seen():
    log = compiled('extern "C" __global__ void f(float *x) { x[0] = 1; }', [], "sm_80")
    assert log["f"]["registers"] > 0 and log["f"]["spills"] == 0
    many = "".join(f"float a{i} = x[{i} * n];" for i in range(80)) + "__syncthreads();"
    many += "".join(f"x[{i} * n + 1] = a{i} * a{79 - i};" for i in range(80))
    spilling = f'extern "C" __global__ void __launch_bounds__(1024, 2) f(float *x, int n) {{ {many} }}'
    assert compiled(spilling, [], "sm_75")["f"]["spills"] > 0
    with pytest.raises(AssertionError, match="undefined"):
        compiled('extern "C" __global__ void f(float *x) { x[0] = y; }', [], "sm_80")
