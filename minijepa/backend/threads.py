"""Worker threads, with BLAS held to one thread in each of them."""

import os

# Worker threads each run their own part of a batch, so BLAS must not start threads of its own, whatever these variables
# were: eight BLAS threads on two cores slow a step to a crawl, and a product's bits depend on their number. OpenBLAS,
# MKL and Accelerate read them once, when NumPy is first imported.
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[_name] = "1"

import contextlib  # noqa: E402
import ctypes  # noqa: E402
import queue  # noqa: E402
import reprlib  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from minijepa.errors import ConfigError  # noqa: E402

MOST_THREADS = 1024  # systems refuse to start tens of thousands
_limit = MOST_THREADS  # changed by at_most


def _openblas(function, *arguments, returns=ctypes.c_int):
    """Call a function of NumPy's own OpenBLAS, such as ``get_corename``; None if NumPy uses another BLAS."""
    for library in Path(np.__file__).parent.parent.glob("numpy.libs/*openblas*"):
        blas = ctypes.CDLL(str(library))  # loaded already: this only finds it
        for name in (f"scipy_openblas_{function}64_", f"scipy_openblas_{function}"):
            if hasattr(blas, name):
                call = ctypes.CFUNCTYPE(returns, *map(type, arguments))((name, blas))
                return call(*arguments)
    return None


def _keep_freed_memory():
    """Let glibc keep freed memory for the next arrays. By default it returns large blocks to the system, which clears
    every page before handing it out again: up to 300,000 page faults, a sixth of a training step's time."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3
        for option, size in ((trim_threshold, 1 << 30), (mmap_threshold, 1 << 30), (top_pad, 1 << 26)):
            libc.mallopt(option, size)


_keep_freed_memory()
_openblas("set_num_threads", ctypes.c_int(1), returns=None)  # NumPy may have been imported before this module


def blas_info():
    """NumPy's BLAS: {"name", "version", "kernel", "threads"}; the last two None unless it is NumPy's own OpenBLAS.

    ``kernel``: the processor that OpenBLAS's code is for (Haswell: AVX2; SkylakeX: AVX-512). OpenBLAS detects it,
    unless the variable OPENBLAS_CORETYPE names another.
    """
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    kernel = _openblas("get_corename", returns=ctypes.c_char_p)
    return {
        "name": built["name"],
        "version": built["version"],
        "kernel": kernel and kernel.decode(),
        "threads": _openblas("get_num_threads"),
    }


def available_cores():
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_threads(requested=None):
    """How many threads to use: ``requested``, which must be at least 1, or one for each core if None."""
    if requested is not None and not 1 <= requested <= MOST_THREADS:
        raise ConfigError(f"--threads must be at least 1 and at most {MOST_THREADS}, got {reprlib.repr(requested)}")
    return available_cores() if requested is None else requested


@contextlib.contextmanager
def at_most(threads):
    """Inside, :func:`on_threads` uses no more threads than this, whatever it is asked for: a command line's choice."""
    global _limit
    before, _limit = _limit, threads
    try:
        yield
    finally:
        _limit = before


def on_threads(function, items, threads):
    """[function(item) for item in items], computed by up to ``threads`` threads, including the caller's.

    If a call raises, no others are started, the running ones finish, and the first error is raised, or an interruption.
    If the system refuses further threads, fewer are used.
    """
    items = list(items)
    results, errors, todo = [None] * len(items), [], iter(range(len(items)))

    def work():
        try:
            for place in todo:  # each place goes to one thread: next() is atomic
                if errors:
                    return
                results[place] = function(items[place])
        except BaseException as error:
            errors.append(error)

    begun, ended, bell = [], [], queue.SimpleQueue()

    def help_out():
        begun.append(True)
        work()
        ended.append(True)
        bell.put(None)

    try:
        for _ in range(min(threads, len(items), _limit) - 1):
            threading.Thread(target=help_out).start()
    except RuntimeError:  # "can't start new thread": a container's limit, say
        pass
    except BaseException as error:  # an interruption; a thread that begins later finds it
        errors.append(error)
    work()
    while len(ended) < len(begun):  # not join(): after an interruption, it takes a running thread for one that ended
        try:
            bell.get()
        except BaseException as error:
            errors.append(error)
    if errors:
        raise next((error for error in errors if not isinstance(error, Exception)), errors[0])
    return results
