"""The devices that the tests of the CUDA path run on: a stand-in everywhere, and the card itself where there is one."""

from functools import partial

import emulator
import pytest
from strict_device import StrictCupy
from tiny import raising

from minijepa import backend
from minijepa.kernels import cublas, graph, launcher
from minijepa.kernels.cublas import Cublas

DEVICES = ["stand-in", "card"] if backend.resolve_device("auto") == "cuda" else ["stand-in"]
no_cublas = raising(OSError("none was found"))


def prepare(device, monkeypatch):
    """CuPy or its stand-in, with kernels and cuBLAS's products, without CUDA graphs; launches are written down."""
    emulator.launches.clear()
    monkeypatch.setattr(graph, "enabled", False)
    if device == "card":
        kernel = launcher._kernel

        def noted(xp, file, name, options):
            emulator.launches.append(name)
            return kernel(xp, file, name, options)

        monkeypatch.setattr(launcher, "_kernel", noted)
        monkeypatch.setattr(launcher, "enabled", True)
        return backend.cupy
    cupy = StrictCupy()
    monkeypatch.setattr(backend, "cupy", cupy)
    monkeypatch.setattr(launcher, "enabled", emulator.RUNS_HERE)
    monkeypatch.setattr(cublas, "load_library", emulator.fake_cublas if emulator.RUNS_HERE else no_cublas)
    monkeypatch.setattr(cublas, "_handles", {})
    monkeypatch.setattr(backend, "_stream", None)
    call = Cublas._call
    monkeypatch.setattr(Cublas, "_call", lambda *a, **kw: cupy.do(partial(call, **kw), *a))  # recorded like all else
    return cupy


def counts(cupy):
    """(times that the host waited, copies to the device); only the stand-in can tell."""
    if not isinstance(cupy, StrictCupy):
        pytest.skip("a card does not count")
    return cupy.synchronisations, cupy.uploads
