"""The cuBLAS binding against a stand-in that does what cuBLAS's manual says, on the host's memory."""

import ctypes

import numpy as np
import pytest
from emulator import fake_cublas
from strict_device import StrictCupy

from minijepa.errors import DeviceError
from minijepa.kernels.cublas import COMPUTE, Cublas, takes

Matrix = StrictCupy().wrapped  # an array of the device that shares a NumPy array's memory


@pytest.fixture
def cublas():
    return Cublas(fake_cublas("cublas"), fake_cublas("cublasLt"), 1234, Matrix(np.zeros(1 << 20, np.uint8)))


def views(rng, rows, cols):
    """Matrices of one shape that lie in memory in different ways."""
    wide = rng.standard_normal((rows, cols + 3)).astype(np.float32)
    tall = rng.standard_normal((cols, rows + 5)).astype(np.float32)
    yield np.ascontiguousarray(wide[:, :cols])
    yield wide[:, 2 : cols + 2]  # rows with a gap between them
    yield np.ascontiguousarray(tall[:, :rows]).T
    yield tall[:, 3 : rows + 3].T


SHAPES = [(5, 7, 3), (1, 7, 3), (5, 1, 3), (5, 7, 1), (1, 1, 1), (1, 4, 1)]


@pytest.mark.parametrize("n, k, m", SHAPES)
def test_every_order_of_both_operands(cublas, n, k, m):
    rng = np.random.default_rng(0)
    for a in views(rng, n, k):
        for b in views(rng, k, m):
            assert takes(Matrix(a), Matrix(b))
            out = np.full((n, m), np.nan, np.float32)
            cublas.matmul(Matrix(a), Matrix(b), Matrix(out))
            np.testing.assert_allclose(out, a.astype(np.float64) @ b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n, k, m", SHAPES)
def test_a_linear_layer_with_its_bias(cublas, n, k, m):
    rng = np.random.default_rng(0)
    x, w, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, k), (m, k), m))
    for b in (bias, 2 * bias):  # the second time, the plan is that of another bias
        out = np.full((n, m), np.nan, np.float32)
        assert cublas.linear(Matrix(x), Matrix(w), Matrix(b), Matrix(out))
        np.testing.assert_allclose(out, x.astype(np.float64) @ w.T + b, rtol=1e-5, atol=1e-6)


def test_a_linear_layer_that_cublaslt_knows_no_algorithm_for(cublas):
    x, out = np.ones((3, 3), np.float32), np.full((3, 3), 7, np.float32)
    cublas.lt.fake_algorithms(0)
    try:
        assert not cublas.linear(Matrix(x), Matrix(x), Matrix(x[0]), Matrix(out))
    finally:
        cublas.lt.fake_algorithms(1)
    assert (out == 7).all()


def test_what_it_does_not_take():
    x = np.zeros((6, 8), np.float32)
    for other in (x[:, ::2], x[::-1], x.astype(np.float64), x[None], np.broadcast_to(x[:1], (6, 8)), x[:0]):
        assert not takes(Matrix(x), Matrix(other)), other.strides


def test_the_workspace_is_set_after_the_stream_which_would_reset_it(cublas):
    library = cublas.blas
    library.fake_stream.restype, library.fake_workspace.restype = ctypes.c_void_p, ctypes.c_size_t
    assert library.fake_stream() == 1234
    assert library.fake_workspace() == 1 << 20


def test_a_failure_names_the_call(cublas):
    cublas.compute = 99
    a = Matrix(np.ones((2, 2), np.float32))
    with pytest.raises(DeviceError, match="cublasGemmEx failed with status 15"):
        cublas.matmul(a, a, Matrix(np.empty((2, 2), np.float32)))
    with pytest.raises(DeviceError, match="cublasLtMatmulDescCreate failed with status 15"):
        cublas.linear(a, a, a[0], Matrix(np.empty((2, 2), np.float32)))
    assert set(COMPUTE) == {"tf32", "fp32"}
