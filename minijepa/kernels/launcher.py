"""The one place where kernels are compiled and launched, and the check of which arrays they take."""

import os
import re
from functools import cache
from pathlib import Path

import numpy as np

from minijepa import backend
from minijepa.errors import DtypeError

FOLDER = Path(__file__).parent
TYPES = {"float": np.dtype(np.float32), "int": np.dtype(np.int32)}
ALIGNMENT = 16  # bytes: of a float4
MOST = 2**30  # elements: kernels count in 32-bit numbers

enabled = os.environ.get("MINIJEPA_KERNELS", "1") != "0"


def takes(*arrays):
    """Whether the kernels take these arrays; None, a missing input, is fine.

    They take nonempty float32 arrays on a GPU, in C order, that begin at a multiple of 16 bytes. Everything else is for
    the reference, as is everything if the environment variable MINIJEPA_KERNELS is 0.
    """
    return enabled and all(a is None or _takes(a) for a in arrays)


def fitted(a):
    """``a``, a float32 array on a GPU, or a copy of it that the kernels take."""
    return a if _takes(a) else a.copy()


def _takes(a):
    return (
        backend.xp_of(a) is not np
        and a.dtype == np.float32
        and 0 < a.size <= MOST
        and a.flags.c_contiguous
        and a.data.ptr % ALIGNMENT == 0
    )


def launch(file, name, grid, block, args, **constants):
    """Run kernel ``name`` of ``file``.cu with ``args``: arrays and numbers, as the kernel declares them.

    ``constants``: compile-time constants of the file, such as HEAD_DIM. Raises DtypeError for arguments that do not
    fit; a GPU would not notice.
    """
    parameters = declarations(source(file))[name]
    if len(args) != len(parameters):
        raise DtypeError(f"kernel {name} takes {len(parameters)} arguments, was given {len(args)}")
    args = tuple([_argument(name, i, *parameter, args[i]) for i, parameter in enumerate(parameters)])
    kernel = _kernel(backend.xp_of(args[0]), file, name, options(**constants))
    kernel(grid, block, args)


def _argument(name, i, kind, pointer, const, value):
    if not pointer:
        return TYPES[kind].type(value)
    if not backend.is_array(value) or value.dtype != TYPES[kind] or not value.flags.c_contiguous:
        found = f"{value.dtype} {value.shape}" if backend.is_array(value) else repr(value)
        raise DtypeError(f"kernel {name}: argument {i} is an array of {kind} in C order, was given {found}")
    return value


@cache
def source(file):
    """The CUDA source of a file in this folder, after common.cuh.

    Non-ASCII letters, which occur only in comments, become blanks, because CuPy writes the source to a file in the
    encoding of the user's locale.
    """
    common, own = ((FOLDER / name).read_text(encoding="utf-8") for name in ("common.cuh", f"{file}.cu"))
    return re.sub("[^\\x00-\\x7f]", " ", f'{common}#line 1 "{file}.cu"\n{own}')


@cache
def declarations(code):
    """{kernel: [(type, whether an array, whether const), ...]}, read from the text."""
    found = {}
    for name, parameters in re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', code):
        words = [" ".join(p.replace("__restrict__", "").split()) for p in parameters.split(",")]
        parts = [re.fullmatch(r"(const )?(.+?) (\*)? ?\w+", word).groups() for word in words]
        found[name] = [(kind, star is not None, const is not None) for const, kind, star in parts]
    return found


def options(**constants):
    return ("--std=c++17", *(f"-D{name}={value}" for name, value in sorted(constants.items())))


@cache
def _kernel(xp, file, name, options):
    """A kernel, compiled on first use."""
    return xp.RawModule(code=source(file), options=options).get_function(name)
