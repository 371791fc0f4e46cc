"""cuBLAS through ctypes: matrix products that a CUDA graph can record, at a chosen precision.

CuPy refuses its own products while a stream is captured. cuBLAS itself allows them (its manual, "CUDA Graphs Support")
if the caller provides its workspace. Setting the stream resets the workspace, so the stream is set first and only once.

A linear layer's product goes to cuBLASLt instead, which adds the bias to each element before it is written, so that the
result is not read and written once more for it.
"""

import ctypes

from minijepa.cli import tell
from minijepa.errors import DeviceError

FLOAT32 = 0  # CUDA_R_32F
COMPUTE = {"fp32": 68, "tf32": 77}  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32
DEFAULT_ALGORITHM = -1
PLAIN, TRANSPOSED = 0, 1
WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for sm_90

# cuBLASLt: attributes of a product, of a search for algorithms; an epilogue; bytes of a cublasLtMatmulHeuristicResult_t
TRANSPOSE_A, EPILOGUE, BIAS_POINTER = 3, 7, 8
MOST_WORKSPACE, ALIGNMENTS = 1, (5, 6, 7, 8)
ADD_BIAS = 4
FOUND = 96
NOT_SUPPORTED = 15  # a status


_handles = {}  # {stream: handle, or None if the library can't be loaded}


def handle(cupy):
    """A cuBLAS handle for the current stream, or None: then CuPy's products are used, but no CUDA graph can be."""
    stream = cupy.cuda.get_current_stream().ptr
    if stream not in _handles:
        try:
            libraries = load_library("cublas"), load_library("cublasLt")
            _handles[stream] = Cublas(*libraries, stream, cupy.empty(WORKSPACE, "uint8"))
        except (OSError, DeviceError) as error:
            tell(f"cuBLAS can't be used ({error}); using CuPy's own products")
            _handles[stream] = None
    return _handles[stream]


def load_library(name):
    """The ctypes library "cublas" or "cublasLt": CuPy's own, or the system's. OSError if there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # CuPy 14 requires it

        return ctypes.CDLL(str(load_nvidia_dynamic_lib(name).abs_path))
    except Exception as error:  # the finder raises its own errors
        raise OSError(" ".join(str(error).split())) from None


class Cublas:
    """A handle for one stream. ``workspace``: a device array of WORKSPACE bytes, kept as long as the handle.

    ``adds_bias``: whether the library has what :meth:`linear` needs.
    """

    compute = COMPUTE["fp32"]  # for all handles; backend.set_precision changes it

    def __init__(self, library, lt, stream, workspace):
        self.blas, self.lt, self.stream, self.workspace = library, lt, stream, workspace
        self.handle = ctypes.c_void_p()
        self.one, self.zero = ctypes.c_float(1), ctypes.c_float(0)
        p, i, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
        library.cublasGemmEx.argtypes = [p, i, i, i, i, i, p, p, i, i, p, i, i, p, p, i, i, i, i]
        self.adds_bias = hasattr(lt, "cublasLtMatmul")
        if self.adds_bias:
            lt.cublasLtMatmul.argtypes = [p, p, p, p, p, p, p, p, p, p, p, p, p, p, size, p]
            lt.cublasLtMatrixLayoutCreate.argtypes = [p, i, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64]
            lt.cublasLtMatmulAlgoGetHeuristic.argtypes = [p, p, p, p, p, p, p, i, p, p]
        self.plans = {}
        self._call("cublasCreate_v2", ctypes.byref(self.handle))
        self._call("cublasSetStream_v2", self.handle, p(stream))
        self._call("cublasSetWorkspace_v2", self.handle, p(workspace.data.ptr), ctypes.c_size_t(workspace.nbytes))

    def _call(self, name, *arguments, fine=0):
        status = getattr(self.lt if name.startswith("cublasLt") else self.blas, name)(*arguments)
        if status not in (0, fine):
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

    def linear(self, x, w, bias, out):
        """out = x wᵀ + bias, all in C order: (n, k), (m, k), (m,) -> (n, m). False if cuBLASLt knows no algorithm.

        As in :meth:`matmul`, it is asked for outᵀ = w xᵀ, to each of whose rows it adds an element of the bias.
        """
        key = *x.shape, len(w), self.compute
        if key not in self.plans:
            self.plans[key] = self._plan(bias, *key)
        if self.plans[key] is None:
            return False
        product, (w_, x_, out_), algorithm = self.plans[key]
        self._set("Desc", product, BIAS_POINTER, ctypes.c_void_p(bias.data.ptr))
        self._call(
            "cublasLtMatmul", self.handle, product, ctypes.byref(self.one), w.data.ptr, w_, x.data.ptr, x_,
            ctypes.byref(self.zero), out.data.ptr, out_, out.data.ptr, out_, algorithm,
            self.workspace.data.ptr, self.workspace.nbytes, self.stream,
        )  # fmt: skip
        return True

    def _plan(self, bias, n, k, m, compute):
        """(product, its three matrices, algorithm) as cuBLASLt's objects, kept for reuse; None without an algorithm."""
        product, search, found = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.create_string_buffer(FOUND)
        self._call("cublasLtMatmulDescCreate", ctypes.byref(product), compute, FLOAT32)
        for name, value in ((TRANSPOSE_A, TRANSPOSED), (EPILOGUE, ADD_BIAS)):
            self._set("Desc", product, name, ctypes.c_int(value))
        self._set("Desc", product, BIAS_POINTER, ctypes.c_void_p(bias.data.ptr))  # the search looks at its alignment
        matrices = [ctypes.c_void_p() for _ in range(3)]
        for matrix, rows, cols in zip(matrices, (k, k, m), (m, n, n)):  # w, x, out as column-major matrices
            self._call("cublasLtMatrixLayoutCreate", ctypes.byref(matrix), FLOAT32, rows, cols, rows)
        self._call("cublasLtMatmulPreferenceCreate", ctypes.byref(search))
        self._set("Preference", search, MOST_WORKSPACE, ctypes.c_size_t(self.workspace.nbytes))
        for name in ALIGNMENTS:
            self._set("Preference", search, name, ctypes.c_int(16))
        count = ctypes.c_int()
        arguments = self.handle, product, *matrices, matrices[2], search, 1, found, ctypes.byref(count)
        self._call("cublasLtMatmulAlgoGetHeuristic", *arguments, fine=NOT_SUPPORTED)
        self._call("cublasLtMatmulPreferenceDestroy", search)
        return (product, matrices, found) if count.value else None

    def _set(self, kind, thing, name, value):
        size = ctypes.c_size_t(ctypes.sizeof(value))
        self._call(f"cublasLtMatmul{kind}SetAttribute", thing, name, ctypes.byref(value), size)


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
