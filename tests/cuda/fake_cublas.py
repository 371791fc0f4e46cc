"""A library that does what cuBLAS's manual says, on the host's memory, compiled by g++."""

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from emulator import require_compiler


@cache
def fake_cublas():
    require_compiler()
    source = Path(__file__).with_name("fake_cublas.cpp")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "libfake.so"
        subprocess.run(["g++", "-O2", "-shared", "-fPIC", str(source), "-o", str(file)], check=True)
        return ctypes.CDLL(str(file))
