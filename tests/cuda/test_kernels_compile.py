"""Every kernel by NVIDIA's own compiler, for GPUs from Turing to Hopper: no spilled registers, little shared memory."""

import sys

import nvrtc
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills(architecture):
    for file, constants in VARIANTS:
        kernels = nvrtc.compiled(launcher.source(file), launcher.options(**constants), architecture)
        assert kernels.keys() == launcher.declarations(launcher.source(file)).keys()
        for name, found in kernels.items():
            print(architecture, file, constants, name, found)
            assert found["spills"] == found["stack"] == 0, (name, constants, found)
            assert found["registers"] * LARGEST_BLOCK.get(name, 256) <= 65536, (name, constants, found)
            assert found["shared"] <= 20_000, (name, constants, found)  # of 48 KB


def test_the_text_is_plain_ascii():
    assert all(launcher.source(file).isascii() for file in FILES)


def test_a_spill_or_an_error_is_seen():
    log = nvrtc.compiled('extern "C" __global__ void f(float *x) { x[0] = 1; }', [], "sm_80")
    assert log["f"]["registers"] > 0 and log["f"]["spills"] == 0
    many = "".join(f"float a{i} = x[{i} * n];" for i in range(80)) + "__syncthreads();"
    many += "".join(f"x[{i} * n + 1] = a{i} * a{79 - i};" for i in range(80))
    spilling = f'extern "C" __global__ void __launch_bounds__(1024, 2) f(float *x, int n) {{ {many} }}'
    assert nvrtc.compiled(spilling, [], "sm_75")["f"]["spills"] > 0
    with pytest.raises(AssertionError, match="undefined"):
        nvrtc.compiled('extern "C" __global__ void f(float *x) { x[0] = y; }', [], "sm_80")
