"""NumPy or CuPy: devices, the one matrix product, and random draws that depend on their name alone.

Array code elsewhere is written once against ``xp = xp_of(x)`` and runs wherever ``x`` lives.
"""

from minijepa.backend import threads  # noqa: F401, I001  (first: it holds BLAS to one thread before NumPy is loaded)

import functools
import math
import zlib

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from minijepa.errors import ConfigError, DeviceError, DtypeError

cupy_problem = "not installed"
try:  # CuPy imports without a GPU too; resolve_device asks whether one can be used
    import cupy
except Exception as error:  # also errors inside CuPy, such as an unwritable home folder
    cupy = None
    if getattr(error, "name", None) != "cupy":
        cupy_problem = str(error)


def xp_of(array):
    """The array library (``numpy`` or ``cupy``) that ``array`` belongs to."""
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np


def is_array(value):
    """Whether ``value`` is an array of a supported library."""
    return isinstance(value, np.ndarray) or (cupy is not None and isinstance(value, cupy.ndarray))


def plain(data):
    """``data`` as an array of NumPy's (or CuPy's) own class, in this machine's byte order; copied only if necessary.

    Subclasses redefine arithmetic: ``*`` of an np.matrix is a matrix product. Raises DtypeError for a masked array,
    whose mask would be lost silently.
    """
    if _is_masked(data):
        raise DtypeError("a masked array would lose its mask: use array.filled(value), and multiply by a 0/1 array")
    if xp_of(data) is not np:
        return data
    array = np.asarray(data)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _is_masked(data):
    return isinstance(data, np.ma.MaskedArray) or (isinstance(data, (list, tuple)) and any(map(_is_masked, data)))


def device_of(array):
    """``"cpu"`` or ``"cuda"``."""
    return "cpu" if xp_of(array) is np else "cuda"


def resolve_device(name):
    """Turn ``"auto"``, ``"cpu"`` or ``"cuda"`` into ``"cpu"`` or ``"cuda"``.

    ``auto`` takes the GPU if one can be used. Raises DeviceError, in one line saying what is missing, if ``cuda`` can't
    be used.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {name!r}: choose auto, cpu or cuda")
    if name == "cpu":
        return "cpu"
    problem = _cuda_problem()
    if problem and name == "cuda":
        raise DeviceError(problem)
    return "cpu" if problem else "cuda"


def _cuda_problem():
    """What keeps CUDA from being used, as one line; None if nothing does."""
    remedy = "or use --device cpu"
    if cupy is None and cupy_problem == "not installed":
        return f"--device cuda needs CuPy, which is not installed: pip install -r requirements-cuda.txt, {remedy}"
    if cupy is None:
        hint = "if its cache folder can't be written to, set CUPY_CACHE_DIR to another"
        return f"--device cuda: CuPy can't be imported ({' '.join(cupy_problem.split())}): {hint}, {remedy}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"--device cuda: the CUDA driver does not answer ({error}): install the NVIDIA driver, {remedy}"
    if count == 0:
        return f"--device cuda: the driver sees no NVIDIA GPU, {remedy}"
    try:
        cupy.zeros(1) + 1  # CuPy compiles this, which needs NVIDIA's compiler and headers
    except Exception as error:  # CuPy has many error types, and so does the compiler
        why = str(error).strip().split("\n")[0]
        return f"--device cuda: CuPy can't run on the GPU ({why}): pip install -r requirements-cuda.txt, {remedy}"
    return None


def gpu_info():
    """The GPU in use and the version of CuPy: {"name", "cupy"}."""
    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    return {"name": name, "cupy": cupy.__version__}


def to_device(array, device):
    """``array`` on ``device`` ("cpu" or "cuda"); copied only if it lives elsewhere."""
    if device == "cpu":
        return to_numpy(array)
    if cupy is None:
        raise DeviceError(_cuda_problem())
    import minijepa.kernels  # noqa: F401  (here, because a CPU needs none of it)

    return cupy.asarray(array)


def to_numpy(array):
    """``array`` as a NumPy array; copied only if it lives on a GPU."""
    return np.asarray(array) if xp_of(array) is np else cupy.asnumpy(array)


def has_twin(function):
    """``function``; on a GPU its fused twin (``kernels/twins.py``) instead, if that takes the arguments."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        fused = run.twin is not None and run.twin.takes(*args, **kwargs)
        return (run.twin.run if fused else function)(*args, **kwargs)

    run.twin = None
    return run


@has_twin
def matmul(a, b, out=None):
    """The one matrix product of this project: ``a @ b`` over the last two axes, broadcast over the others.

    Every product of the network goes through here, so that precision and library are chosen in one place.
    """
    xp = xp_of(a)
    if xp is np and (0 in a.strides[-2:] or 0 in b.strides[-2:]):
        a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)  # else NumPy may add one by one, which stops at 2²⁴
    if out is None or xp is np or out.flags.c_contiguous:
        return xp.matmul(a, b, out=out)
    out[...] = xp.matmul(a, b)  # CuPy does not document matmul into a strided ``out``
    return out


_stream = None


def use_own_stream():
    """Let CuPy work on a stream of our own in this thread: the default one can't be recorded as a CUDA graph."""
    global _stream
    if _stream is None:
        _stream = cupy.cuda.Stream(non_blocking=True)
    current = cupy.cuda.get_current_stream()
    if current.ptr != _stream.ptr:
        current.synchronize()  # its pending results may be needed
        _stream.use()


# Sums over rows and columns. On a CPU they are products with a vector, which BLAS computes several times faster than
# NumPy adds; on a GPU they are sums, because products there may be rounded to TF32.


def row_sums(x, w=None):
    """Σ over the last axis, kept with length 1, of x or of w x: (..., n), (n,) -> (..., 1)."""
    *leading, n = x.shape
    if xp_of(x) is not np or n > LONG:
        return sums(x if w is None else x * w, axis=-1)
    w = np.ones(n, x.dtype) if w is None else w
    return matmul(x.reshape(math.prod(leading), n), w.reshape(n, 1)).reshape(*leading, 1)


def row_dots(a, b):
    """Σ over the last axis, kept with length 1, of a b: (..., n), (..., n) -> (..., 1)."""
    if xp_of(a) is not np or a.shape[-1] > LONG:
        return sums(a * b, axis=-1)
    return np.vecdot(a, b)[..., None]


@has_twin
def column_sums(x):
    """Σ over the rows of a matrix: (t, n) -> (n,)."""
    if xp_of(x) is not np:
        return x.sum(axis=0)
    if len(x) > LONG:
        return sums(np.stack([column_sums(x[i : i + LONG]) for i in range(0, len(x), LONG)]), axis=0)[0]
    return matmul(np.ones(len(x), x.dtype), x)


LONG = 1 << 16  # terms of a float32 sum; added one by one, ones would stop at 2²⁴, because 2²⁴ + 1 rounds to 2²⁴


def sums(x, axis):
    """Σ over ``axis``: an axis, a tuple of them, or all (None), kept with length 1. Long sums on a CPU use float64,
    because NumPy adds row after row."""
    if xp_of(x) is np and x.size > LONG:
        axes = normalize_axis_tuple(range(x.ndim) if axis is None else axis, x.ndim)
        if math.prod(x.shape[a] for a in axes) > LONG:
            return x.sum(axis=axis, keepdims=True, dtype=np.float64).astype(x.dtype)
    return x.sum(axis=axis, keepdims=True)


BLOCK = 1 << 17  # elements: few enough for the cache, in float32, and enough to hide the cost of calls


def row_blocks(*arrays):
    """Cut arrays (..., nᵢ) into blocks of the same rows, so that an operation's passes find their data in the cache.

    Yields a tuple of matrices (rows of the block, nᵢ), which are writable views if the array is in C order. None stays
    None. On a GPU, where each pass is a launch, all rows are one block.
    """
    first = arrays[0]
    if not first.size:
        return
    rows = math.prod(first.shape[:-1])
    step = max(1, BLOCK // first.shape[-1] if xp_of(first) is np else rows)
    matrices = [None if a is None else a.reshape(rows, a.shape[-1]) for a in arrays]
    for start in range(0, rows, step):
        yield tuple([None if m is None else m[start : start + step] for m in matrices])


def rng(seed, purpose, step=0):
    """A generator that is a function of (seed, purpose, step) alone. Raises ConfigError unless 0 ≤ seed < 2⁶⁴.

    Philox is a counter-based generator: its n-th output is a keyed hash of n. The key is made of ``seed`` and the word
    ``purpose``, and the step is the counter's highest word, so no two streams overlap and no state is stored: step
    1,000 can be drawn without the 999 before it.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    if not 0 <= seed < 2**64:
        raise ConfigError(f"a seed must be at least 0 and below 2⁶⁴, got {seed}")
    key = np.array([int(seed), zlib.crc32(purpose.encode())], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, step], np.uint64)))


def set_precision(precision):
    """Matrix products on a GPU in "tf32" (10-bit mantissa inputs, float32 sums) or exact "fp32"."""
    from cupy._core import _routines_linalg  # the only way other than the environment variable CUPY_TF32

    from minijepa.kernels import cublas

    cublas.Cublas.compute = cublas.COMPUTE[precision]
    if precision == "tf32":
        kind = _routines_linalg.COMPUTE_TYPE_TF32
    else:
        kind = _routines_linalg.COMPUTE_TYPE_FP32
    _routines_linalg.set_compute_type(np.dtype(np.float32), kind)
