"""The CUDA kernels against the reference in float64: on a card where there is one, and everywhere as g++ compiles their
text (see emulator.py).

What can be known without one: that NVIDIA's compiler takes them without spilling
registers (test_kernels_compile.py), that the numbers are right, that every element of a result is written and nothing
beside it, and that no result depends on which thread runs first.
"""

import emulator
import numpy as np
import pytest
from devices import DEVICES, prepare
from strict_device import StrictCupy
from tiny import differentiate, values_and_gradients

from minijepa import Tape, Tensor, backend, ops
from minijepa.errors import DtypeError
from minijepa.kernels import cublas, launcher, launches
from minijepa.ops.gelu import Gelu
from minijepa.ops.matmul import Linear
from minijepa.training.ema import update_ema
from minijepa.training.optim import AdamW

pytestmark = pytest.mark.skipif(not emulator.RUNS_HERE, reason="kernels are emulated on Linux")


@pytest.fixture(autouse=True, params=DEVICES)
def cupy(request, monkeypatch):
    return prepare(request.param, monkeypatch)


def draw(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng((seed, *shape)).standard_normal(shape)).astype(np.float32)


def assert_close(found, wanted, tolerance):
    """Within ``tolerance`` of the largest element."""
    assert found.shape == wanted.shape
    error = np.abs(found - wanted).max(initial=0)
    assert error <= tolerance * np.abs(wanted).max(initial=1e-30), f"{error} of {np.abs(wanted).max()}"


def same_twice(compute):
    """The arrays that ``compute()`` returns; computed again with all threads in falling order, for the same bits."""
    first = [backend.to_numpy(a) for a in compute()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulator, "falling", True)
        second = [backend.to_numpy(a) for a in compute()]
    np.testing.assert_equal(first, second)
    return first


def check(fn, *arrays, tolerance=3e-6, used=()):
    """Value and gradients of an operation on the device against those of the reference in float64."""

    def run(convert):
        return values_and_gradients(fn, map(convert, arrays), lambda y: convert(draw(*y.shape, seed=1)))

    wanted = run(lambda a: a.astype(np.float64))
    found = same_twice(lambda: run(backend.cupy.asarray))
    assert set(used) <= set(emulator.launches)
    for one, other in zip(found, wanted):
        assert one.dtype == np.float32
        assert_close(one, other, tolerance)


# ----------------------------------------------------------------------------------------- row by row, column by column


@pytest.mark.parametrize("shape", [(1, 1), (1, 32), (7, 33), (65, 48), (2, 3, 100), (600, 5)])
def test_gelu(shape):
    x = draw(*shape, scale=3)
    x.flat[0] = 30
    x.flat[-1] = -30
    check(ops.gelu, x, draw(shape[-1]), used=["gelu_forward", "gelu_backward", "sum_partials"])


def test_gelu_without_a_bias_or_without_a_gradient():
    check(lambda x: ops.gelu(x), draw(9, 40), used=["gelu_forward"])
    x, bias = draw(9, 40), draw(40)
    (y,) = same_twice(lambda: [ops.gelu(Tensor(backend.cupy.asarray(x)), Tensor(backend.cupy.asarray(bias))).data])
    assert_close(y, ops.gelu(x.astype(np.float64), bias.astype(np.float64)).data, 3e-6)


def test_gelu_far_from_zero():
    x = np.array([[-1e19, -1.3e13, -50, 50, 1.3e13, 1e19]], np.float32)
    check(ops.gelu, x, np.zeros(6, np.float32), used=["gelu_forward"])


@pytest.mark.parametrize("shape", [(1, 96), (5, 20), (2, 37, 96), (300, 1), (70, 200)])
def test_layer_norm(shape):
    n = shape[-1]
    check(ops.layer_norm, draw(*shape), draw(n, seed=2), draw(n, seed=3), tolerance=1e-5,
          used=["layer_norm_forward", "layer_norm_backward", "sum_partials"])  # fmt: skip


def test_a_layer_norm_whose_squares_overflow_is_nan_and_not_zero():
    x, w = np.array([[1e30, 1e30, -1e30], [1, 2, 3]], np.float32), np.ones(3, np.float32)
    (y,) = same_twice(lambda: [ops.layer_norm(*map(backend.cupy.asarray, (x, w, 0 * w))).data])
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()


@pytest.mark.parametrize("scale, shift, tolerance", [(1e-4, 0, 1e-5), (1e-3, 0, 1e-5), (1, 100, 2e-4), (1e4, 0, 1e-5)])
def test_layer_norm_where_eps_or_the_mean_is_large(scale, shift, tolerance):
    check(ops.layer_norm, draw(33, 96, scale=scale) + np.float32(shift), draw(96, seed=2), draw(96, seed=3),
          tolerance=tolerance)  # fmt: skip


@pytest.mark.parametrize("rows, n", [(1, 1), (1, 33), (33, 96), (700, 40)])
def test_sums(rows, n):
    x = draw(rows, n)
    check(ops.linear, x, draw(3, n), draw(3, seed=2), used=["column_sums", "sum_partials"])

    def run():
        a, columns, squares = (backend.cupy.asarray(x), *(backend.cupy.empty(s, np.float32) for s in [(n,), ()]))
        launches.column_sums(a, columns)
        launches.sum_of_squares(a, squares)
        return columns, squares

    columns, squares = same_twice(run)
    assert_close(columns, x.sum(axis=0, dtype=np.float64), 1e-5)
    assert_close(squares, np.square(x, dtype=np.float64).sum(), 1e-6)


# ------------------------------------------------------------------------------------------------------------ attention

LENGTHS = [1, 2, 31, 32, 33, 64, 65, 100, 128]


@pytest.mark.parametrize("head_dim", [16, 24, 32, 48, 64])
def test_attention(head_dim):
    lengths = LENGTHS if head_dim in (16, 32) else [1, 33, 70]
    qkv = draw(sum(lengths), 3 * 2 * head_dim)
    check(lambda x: ops.attention(x, lengths, 2), qkv, tolerance=1e-5, used=["attention_forward", "attention_backward"])


def test_attention_with_large_scores():
    """Scores of up to a thousand, and rows whose scores are all far below zero: the maximum must be subtracted."""
    check(lambda x: ops.attention(x, [40, 7], 2), draw(47, 96, scale=16), tolerance=2e-3)
    qkv = draw(9, 96)
    qkv[:, :32], qkv[:, 32:64] = 10, -10
    (y,) = same_twice(lambda: [ops.attention(Tensor(backend.cupy.asarray(qkv)), [9], 2).data])
    assert_close(y, np.broadcast_to(qkv[:, 64:].mean(axis=0), y.shape), 1e-4)


@pytest.mark.parametrize("longest", [70, 1])
def test_attention_with_empty_sequences_and_spare_rows(longest):
    """Fixed capacity: rows after the last sequence are ignored, and their results are zero."""
    lengths = [5, 0, 70, 0, 1, 0]
    used, spare, heads, d = sum(lengths), 45, 3, 16
    qkv, dy = draw(used + spare, 3 * heads * d), draw(used + spare, heads * d, seed=1)
    qkv[used:] = dy[used:] = np.nan

    def run():
        cupy = backend.cupy
        x, cotangent = cupy.asarray(qkv), cupy.asarray(dy)
        offsets = cupy.asarray(np.cumsum([0, *lengths]).astype(np.int32))
        y, lse, dx = (cupy.empty(s, np.float32) for s in (dy.shape, (len(dy), heads), qkv.shape))
        launches.attention_forward(x, offsets, heads, longest, y, lse)
        launches.attention_backward(x, offsets, heads, longest, y, lse, cotangent, dx)
        return y, dx

    y, dx = same_twice(run)
    x = Tensor(qkv[:used].astype(np.float64), requires_grad=True)
    wanted = differentiate(lambda: ops.attention(x, [n for n in lengths if n], heads), dy[:used].astype(np.float64))
    assert_close(y[:used], wanted.data, 1e-5)
    assert_close(dx[:used], x.grad, 1e-5)
    assert not y[used:].any() and not dx[used:].any()


# ----------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    "n, width, index",
    [
        (1, 5, [0]), (4, 33, [2, 2, 0, 2]), (300, 96, range(0, 300, 7)), (64, 40, np.arange(3000) * 7 % 60),
        (9, 8, [8] * 100),
    ],
)  # fmt: skip
def test_rows(n, width, index):
    check(lambda x: ops.rows(x, ops.RowIndex(np.asarray(index), backend.device_of(x.data))), draw(n, width),
          used=["gather", "gather_sum"])  # fmt: skip


# --------------------------------------------------------------------------------------------------- losses and updates


@pytest.mark.parametrize("count", [None, 7])
@pytest.mark.parametrize("beta", [None, 1.0, 0.3])
@pytest.mark.parametrize("rows", [1, 130])
def test_losses(rows, beta, count):
    def loss(p, q):
        return ops.l2_loss(p, q, count) if beta is None else ops.smooth_l1_loss(p, q, beta, count)

    check(loss, draw(rows, 40), draw(rows, 40, seed=1), used=["loss_forward", "loss_backward"])


@pytest.mark.parametrize("beta", [None, 0.5])
def test_a_loss_that_is_not_finite_has_a_gradient_that_is_not(beta):
    p, q = draw(4, 40), draw(4, 40, seed=1)
    p[1, 3] = np.nan
    for convert in (np.asarray, backend.cupy.asarray):
        x, b = Tensor(convert(p), requires_grad=True), convert(q)
        y = differentiate(lambda x=x, b=b: ops.smooth_l1_loss(x, b, beta) if beta else ops.l2_loss(x, b))
        assert np.isnan(y.item())
        np.testing.assert_array_equal(np.isnan(backend.to_numpy(x.grad)), np.isnan(p))


def test_rows_after_the_count_have_no_loss_and_no_gradient():
    p, q = draw(50, 24), draw(50, 24, seed=1)
    p[30:], q[40:] = np.nan, np.inf

    def run(beta):
        asarray, empty = backend.cupy.asarray, backend.cupy.empty
        a, b, counts, y, dp = *map(asarray, (p, q, np.int32([30, 60]))), empty((), np.float32), empty(p.shape, p.dtype)
        launches.loss_forward(a, b, counts, beta, y)
        launches.loss_backward(a, b, counts, beta, asarray(np.float32(2)), dp)
        return y, dp

    e = (p - q)[:30].astype(np.float64)
    for beta, wanted, gradient in [(0, (e * e).sum() / 60, 4 * e / 60), (9.0, (e * e).sum() / 18 / 1440, e / 9 / 720)]:
        y, dp = same_twice(lambda beta=beta: run(beta))
        assert_close(y, wanted, 1e-6)
        assert_close(dp[:30], gradient, 1e-6)
        assert not dp[30:].any()


@pytest.mark.parametrize("size, first, last", [(1000, 300, 801), (257, 1, 257), (64, 32, 32)])
def test_adamw_and_ema(size, first, last):
    def run(convert):
        data, target = convert(draw(size)), convert(draw(size, seed=9))
        grad = convert(0 * draw(size))
        optimizer = AdamW(data, grad, (slice(0, first), slice(last, size)), 0.3)
        for step in range(4):
            grad[...] = convert(draw(size, seed=step) * np.float32(10.0**-step))
            optimizer.step(0.01 * (1 + step))
            update_ema(target, data, 0.9 + 0.01 * step)
        return data, optimizer.m, optimizer.v, target

    wanted = run(lambda a: a.astype(np.float64))
    found = same_twice(lambda: run(backend.cupy.asarray))
    assert {"adamw", "ema"} <= set(emulator.launches)
    for one, other in zip(found, wanted):
        assert_close(one, other, 2e-6)


def test_ema_with_momentum_1_changes_nothing():
    target = backend.cupy.asarray(draw(100))
    update_ema(target, backend.cupy.asarray(draw(100, seed=1)), 1.0)
    assert "ema" in emulator.launches
    np.testing.assert_array_equal(backend.to_numpy(target), draw(100))


# ----------------------------------------------------------------------------------------- which body runs, and on what


def test_the_tape_remembers_which_body_ran(monkeypatch):
    x = Tensor(backend.cupy.asarray(draw(4, 8)), requires_grad=True)
    for fused in (True, False):
        monkeypatch.setattr(launcher, "enabled", fused)
        with Tape() as tape:
            y = ops.gelu(x)
        (entry,) = tape.entries
        assert entry.op is Gelu and entry.body is (Gelu.twin if fused else Gelu) and "gelu" in str(tape)
        monkeypatch.setattr(launcher, "enabled", not fused)  # between forward and backward: nothing changes hands
        tape.backward(y, backend.cupy.asarray(draw(4, 8, seed=1)))
    assert emulator.launches == ["gelu_forward", "gelu_backward", "sum_partials"]


@pytest.mark.parametrize("algorithms", [1, 0])
def test_a_linear_layer_s_bias_is_added_within_the_product(algorithms):
    blas = cublas.handle(backend.cupy)
    if not hasattr(blas.lt, "fake_algorithms"):
        pytest.skip("of the emulator")
    blas.plans.clear()
    blas.lt.fake_algorithms(algorithms)
    arrays = draw(2, 5, 7), draw(3, 7, seed=1), draw(3, seed=2)
    try:
        with Tape() as tape:
            ops.linear(*(Tensor(backend.cupy.asarray(a), requires_grad=True) for a in arrays))
        check(ops.linear, *arrays)
    finally:
        blas.lt.fake_algorithms(1)
        blas.plans.clear()
    assert tape.entries[0].body is Linear.twin


def test_a_subclass_does_not_inherit_the_twin_of_other_formulas():
    class Mine(Gelu):
        pass

    assert Gelu.twin is not None and Mine.twin is None


def test_what_the_kernels_do_not_serve_goes_to_the_reference(monkeypatch):
    asarray = backend.cupy.asarray
    w = draw(8)
    for x in (
        asarray(draw(6, 8).astype(np.float64)), asarray(draw(8, 6)).T, asarray(draw(60))[1:49].reshape(6, 8),
        asarray(draw(0, 8)), draw(6, 8),
    ):  # fmt: skip
        assert not launcher.takes(x)
        convert = asarray if backend.device_of(x) == "cuda" else np.asarray
        ops.layer_norm(Tensor(x), Tensor(convert(w.astype(x.dtype))), Tensor(convert(w.astype(x.dtype))))
    wide, odd = asarray(draw(2, 513)), asarray(draw(2, 3 * 10))
    ops.layer_norm(wide, asarray(draw(513)), asarray(draw(513)))
    ops.attention(odd, [2], 1)
    good, tiny = asarray(draw(6, 8)), 1e-38  # which a GPU's kernels take for 0
    ops.layer_norm(good, asarray(w), asarray(w), eps=tiny)
    ops.smooth_l1_loss(good, good, beta=tiny)
    assert launcher.takes(good, None)
    monkeypatch.setattr(launcher, "enabled", False)
    assert not launcher.takes(good)
    assert emulator.launches == []


def test_arguments_that_do_not_fit_are_refused():
    x, y = backend.cupy.asarray(draw(6, 8)), backend.cupy.empty((2, 8), np.float32)
    index = backend.cupy.asarray(np.int32([0, 1]))
    launches.gather(x, index, y)
    for mistake in (
        lambda: launches.gather(x, index.astype(np.int64), y), lambda: launches.gather(x, 3, y),
        lambda: launches.gather(x.T, index, y), lambda: launcher.launch("rows", "gather", (1,), (32, 8), (x, y)),
    ):  # fmt: skip
        with pytest.raises(DtypeError, match="kernel gather"):
            mistake()


# -------------------------------------------------------------------------------------------- does the emulator see it?

KERNEL = 'extern "C" __global__ void f(float *x, int n) { %s }'


@pytest.fixture
def emulated(cupy):
    """A function that runs a body of a kernel in the emulator, which a card does without."""
    if not isinstance(cupy, StrictCupy):
        pytest.skip("of the emulator")

    def run(body, size=64, block=(64,)):
        x = np.zeros(size, np.float32)
        emulator.Module(KERNEL % body).get_function("f")((1,), block, (x, np.int32(size)))
        return x

    return run


@pytest.mark.parametrize(
    "body, message",
    [
        ("if (threadIdx.x < 32) __syncthreads();", "not all threads of a block"),
        ("if (threadIdx.x % 2) __syncthreads();", "not all threads of a block"),
        ("if (threadIdx.x < 7) x[0] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);", "not all lanes of a warp"),
        ("x[0] = __shfl_xor_sync(0xffu, 1.0f, 1);", "among some lanes"),
        ("if (threadIdx.x == 0) x[n] = 1;", "wrote outside"),
        ("if (threadIdx.x == 0) x[-1] = 1;", "wrote outside"),
    ],
)
def test_the_emulator_refuses(emulated, body, message):
    with pytest.raises(emulator.KernelError, match=message):
        emulated(body)
    assert emulated("x[threadIdx.x] = threadIdx.x;")[63] == 63  # and goes on working


def test_the_emulator_shows_a_missing_barrier(emulated):
    exchange = "__shared__ float s[64]; s[threadIdx.x] = threadIdx.x; %s x[threadIdx.x] = s[63 - threadIdx.x];"
    np.testing.assert_array_equal(emulated(exchange % "__syncthreads();"), np.arange(64)[::-1])
    assert np.isnan(emulated(exchange % "")).any()
    x = emulated("x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, (float)threadIdx.x, 5);")
    np.testing.assert_array_equal(x, np.arange(64) ^ 5)
    with pytest.raises(emulator.KernelError, match="blocks of 33 threads"):
        emulated("", block=(33,))
