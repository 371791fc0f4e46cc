"""Devices without a GPU, and random draws that depend on their name alone."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import python
from tiny import raises, raising

from minijepa import backend
from minijepa.errors import ConfigError, DeviceError

CUDARuntimeError = type("CUDARuntimeError", (RuntimeError,), {})


def fake_cupy(count, zeros=np.zeros):
    """As much of CuPy as ``resolve_device`` looks at; ``count`` is what the driver answers, or its error."""
    answer = raising(count) if isinstance(count, Exception) else lambda: count
    runtime = SimpleNamespace(getDeviceCount=answer, CUDARuntimeError=CUDARuntimeError)
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime), ndarray=type("ndarray", (), {}), zeros=zeros)


INSTALL, NO_DRIVER = "pip install -r requirements-cuda.txt", fake_cupy(CUDARuntimeError("no driver"))
NO_HEADERS = fake_cupy(1, raising(RuntimeError("Failed to find CUDA headers.\nPlease install ...")))


@pytest.mark.parametrize(
    ("cupy", "words"),
    [
        (None, f" needs CuPy, which is not installed: {INSTALL}"),
        (NO_DRIVER, ": the CUDA driver does not answer (no driver): install the NVIDIA driver"),
        (fake_cupy(0), ": the driver sees no NVIDIA GPU"),
        (NO_HEADERS, f": CuPy can't run on the GPU (Failed to find CUDA headers.): {INSTALL}"),
    ],
    ids=["no CuPy", "no driver", "no GPU", "no headers"],
)
def test_without_a_gpu_auto_takes_the_cpu_and_cuda_says_what_is_missing(monkeypatch, cupy, words):
    monkeypatch.setattr(backend, "cupy", cupy)
    assert backend.resolve_device("auto") == backend.resolve_device("cpu") == "cpu"
    with raises(DeviceError, f"--device cuda{words}, or use --device cpu"):
        backend.resolve_device("cuda")
    if cupy is None:
        with pytest.raises(DeviceError, match=r"requirements-cuda\.txt"):
            backend.to_device(np.zeros(2), "cuda")


def test_with_a_gpu_auto_takes_it_but_cpu_stays_cpu(monkeypatch):
    monkeypatch.setattr(backend, "cupy", fake_cupy(1))
    assert [backend.resolve_device(name) for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


def test_whatever_importing_cupy_raises_the_cpu_works_and_cuda_says_what_it_was(tmp_path):
    """Its import makes a cache folder, which can't be had where HOME is not one's own; BLAS's variables don't count."""
    (tmp_path / "cupy.py").write_text("raise PermissionError(13, 'Permission denied', '/home/x/.cupy')")
    code = """
from minijepa import backend
from minijepa.backend import threads
assert backend.resolve_device("auto") == backend.resolve_device("cpu") == "cpu"
assert threads.blas_info()["threads"] in (1, None)
backend.resolve_device("cuda")
"""
    done = python("-c", code, PYTHONPATH=str(tmp_path), OPENBLAS_NUM_THREADS="²", MKL_NUM_THREADS="8")
    assert done.stderr.endswith(
        "DeviceError: --device cuda: CuPy can't be imported ([Errno 13] Permission denied: '/home/x/.cupy'): if its "
        "cache folder can't be written to, set CUPY_CACHE_DIR to another, or use --device cpu\n"
    )


def test_an_unknown_device_is_refused():
    with pytest.raises(DeviceError, match=r"^unknown device 'gpu': choose auto, cpu or cuda$"):
        backend.resolve_device("gpu")


def test_a_numpy_array_lives_on_the_cpu_and_stays_there_uncopied():
    x = np.arange(3.0)
    assert backend.xp_of(x) is np and backend.is_array(x) and backend.device_of(x) == "cpu"
    assert backend.to_device(x, "cpu") is x and backend.to_numpy(x) is x
    assert not backend.is_array([1.0]) and not backend.is_array(np.float32(1))


def test_a_cupy_array_is_recognised_by_its_class(monkeypatch):
    cupy = fake_cupy(1)
    monkeypatch.setattr(backend, "cupy", cupy)
    x = cupy.ndarray()
    assert backend.xp_of(x) is cupy and backend.is_array(x) and backend.device_of(x) == "cuda"
    assert backend.device_of(np.zeros(2)) == "cpu"


def test_matmul_broadcasts_and_writes_into_out():
    a, b = np.arange(12.0).reshape(2, 2, 3), np.arange(6.0).reshape(3, 2)
    out = np.empty((2, 2, 2))
    assert backend.matmul(a, b, out=out) is out
    np.testing.assert_array_equal(out, np.einsum("bij,jk->bik", a, b))


def draws(*name):
    return tuple(backend.rng(*name).integers(0, 2**63, 4))


def test_draws_are_a_function_of_seed_purpose_and_step():
    names = list(itertools.product((0, 1, 2**40), ("masks", "flips"), (0, 1, 2, 10**6)))
    forwards = {name: draws(*name) for name in names}
    backwards = {name: draws(*name) for name in reversed(names)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(names)
    assert draws(3, "masks") == draws(3, "masks", 0)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_is_not_taken_for_another(seed):
    with raises(ConfigError, f"a seed must be at least 0 and below 2⁶⁴, got {seed}"):
        backend.rng(seed, "masks")


def test_a_long_stream_does_not_run_into_the_next_step():
    """The step is in the counter's highest word: the next stream begins 2¹⁹² blocks further on."""
    state = [backend.rng(5, "masks", step).bit_generator.state["state"] for step in (7, 8)]
    counters = [sum(int(word) << (64 * i) for i, word in enumerate(s["counter"])) for s in state]
    assert counters[1] - counters[0] == 1 << 192
    np.testing.assert_array_equal(state[0]["key"], state[1]["key"])


def test_a_known_draw():
    """Changing this changes what every seed means: the masks, weights and augmentations of all earlier runs."""
    assert backend.rng(0, "masks", 1).bit_generator.random_raw(2).tolist() == [
        14401300639092025480,
        14379483908873732277,
    ]
