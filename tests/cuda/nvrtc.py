"""NVIDIA's compiler without a GPU: the package nvidia-cuda-nvrtc, called through ctypes."""

import ctypes
import re
import sys
from functools import cache
from pathlib import Path

import pytest


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
    return reports(text)


def reports(log):
    """The assembler's words, as numbers."""
    kernels = {}
    for part in log.split("Compiling entry function")[1:]:
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
