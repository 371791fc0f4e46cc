"""cuBLAS through ctypes: matrix products that a CUDA graph can record, at a chosen precision.

CuPy refuses its own products while a stream is captured. cuBLAS itself allows them (its manual, "CUDA Graphs Support")
if the caller provides its workspace. Setting the stream resets the workspace, so the stream is set first and only once.
"""

import ctypes

from minijepa.cli import tell
from minijepa.errors import DeviceError

FLOAT32 = 0  # CUDA_R_32F
COMPUTE = {"fp32": 68, "tf32": 77}  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32
DEFAULT_ALGORITHM = -1
PLAIN, TRANSPOSED = 0, 1
WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for sm_90


_handles = {}  # {stream: handle, or None if the library can't be loaded}


def handle(cupy):
    """A cuBLAS handle for the current stream, or None: then CuPy's products are used, but no CUDA graph can be."""
    stream = cupy.cuda.get_current_stream().ptr
    if stream not in _handles:
        try:
            _handles[stream] = Cublas(load_library(), stream, cupy.empty(WORKSPACE, "uint8"))
        except (OSError, DeviceError) as error:
            tell(f"cuBLAS can't be used ({error}); using CuPy's own products")
            _handles[stream] = None
    return _handles[stream]


def load_library():
    """cuBLAS as a ctypes library: the one that comes with CuPy, or the system's. OSError if there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # CuPy 14 requires it

        return ctypes.CDLL(str(load_nvidia_dynamic_lib("cublas").abs_path))
    except Exception as error:  # the finder raises its own errors
        raise OSError(" ".join(str(error).split())) from None


class Cublas:
    """A handle for one stream. ``workspace``: a device array of WORKSPACE bytes, kept as long as the handle."""

    compute = COMPUTE["fp32"]  # for all handles; backend.set_precision changes it

    def __init__(self, library, stream, workspace):
        self.blas, self.workspace = library, workspace
        self.handle = ctypes.c_void_p()
        self.one, self.zero = ctypes.c_float(1), ctypes.c_float(0)
        p, i = ctypes.c_void_p, ctypes.c_int
        library.cublasGemmEx.argtypes = [p, i, i, i, i, i, p, p, i, i, p, i, i, p, p, i, i, i, i]
        self._call("cublasCreate_v2", ctypes.byref(self.handle))
        self._call("cublasSetStream_v2", self.handle, p(stream))
        self._call("cublasSetWorkspace_v2", self.handle, p(workspace.data.ptr), ctypes.c_size_t(workspace.nbytes))

    def _call(self, name, *arguments):
        status = getattr(self.blas, name)(*arguments)
        if status:
            raise DeviceError(f"cuBLAS: {name} failed with status {status}")

    def matmul(self, a, b, out):
        """out = a b for float32 matrices (n, k), (k, m) -> (n, m) that :func:`takes` allows; ``out`` in C order.

        cuBLAS is column-major: it reads a row-major matrix as its transpose. So it is asked for outᵀ = bᵀ aᵀ, and reads
        a row-major b as bᵀ.
        """
        (n, k), m = a.shape, b.shape[1]
        (op_a, ld_a), (op_b, ld_b) = _order(a), _order(b)
        self._call(
            "cublasGemmEx", self.handle, op_b, op_a, m, n, k,
            ctypes.byref(self.one), b.data.ptr, FLOAT32, ld_b, a.data.ptr, FLOAT32, ld_a,
            ctypes.byref(self.zero), out.data.ptr, FLOAT32, m, self.compute, DEFAULT_ALGORITHM,
        )  # fmt: skip
        return out


def takes(*matrices):
    """Whether :meth:`Cublas.matmul` takes these: not empty, float32, 2-D, rows or columns without gaps inside."""
    return all(x.ndim == 2 and x.size and x.dtype == "float32" and _order(x) is not None for x in matrices)


def _order(x):
    """(operation, leading dimension) of a row-major or column-major matrix; None for anything else."""
    rows, cols = x.shape
    down, right = (stride // 4 for stride in x.strides)
    if (right == 1 or cols == 1) and (down >= cols or rows == 1):
        return PLAIN, down if rows > 1 else cols
    if (down == 1 or rows == 1) and (right >= rows or cols == 1):
        return TRANSPOSED, right if cols > 1 else rows
    return None
