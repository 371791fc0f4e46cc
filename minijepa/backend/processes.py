"""Worker processes on one machine: forked from this one, so they have its code and data, and what is :func:`shared`.

Threads take turns at the interpreter's lock, and wake each other up for it thousands of times a step; processes don't.
"""

import contextlib
import gc
import mmap
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
import weakref

import numpy as np

from minijepa.cli import ENDINGS
from minijepa.errors import TrainingError

CAN_FORK = sys.platform == "linux" and os.path.isdir("/proc/self/fd")  # elsewhere a forked BLAS may not work


def shared(array):
    """A copy of ``array`` in memory that processes forked later have in common with this one."""
    if not array.size:
        return array.copy()
    try:
        memory = mmap.mmap(-1, array.nbytes)
    except OSError as error:
        raise MemoryError(f"{array.nbytes:,} bytes: {error.strerror}") from None
    copy = np.frombuffer(memory, array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Workers:
    """``count`` processes, this one among them, that compute ``function``.

    The others are forked by the first :meth:`map`, with everything ``function`` refers to as it is then; later changes
    reach them only in :func:`shared` arrays. Arguments and results are pickled.
    """

    def __init__(self, function, count):
        self.function, self.count = function, count
        self.connections, self.end = [], None

    def _start(self):
        self.connections, processes = [], []
        self.end = weakref.finalize(self, _end, os.getpid(), self.connections, processes)  # at exit too
        for _ in range(self.count - 1):
            try:
                ours, theirs = multiprocessing.Pipe()
                process = _forked(_serve, theirs, [*self.connections, ours], self.function)
            except OSError:  # a container's limit, say: fewer do the work
                break
            theirs.close()
            self.connections.append(ours)
            processes.append(process)

    def map(self, items):
        """[function(item) for item in items]: item i is computed by worker i mod ``count``, worker 0 being this one.

        Raises the first error after all have stopped; TrainingError if a worker was killed.
        """
        if self.end is None or not self.end.alive:
            self._start()
        count = len(self.connections) + 1
        try:
            for number, connection in enumerate(self.connections, 1):
                connection.send(items[number::count])
            replies = [_reply(self.function, items[::count])]
            replies += [connection.recv() for connection in self.connections]
        except (EOFError, OSError):
            self.end()
            raise TrainingError("a worker process was killed: for lack of memory? Try fewer --threads") from None
        except BaseException:  # an interruption: nobody reads those replies
            self.end()
            raise
        for _, error in replies:
            if error:
                raise error
        results = [None] * len(items)
        for number, (found, _) in enumerate(replies):
            results[number::count] = found
        return results


def _reply(function, items):
    """(the results, None), or (None, an error)."""
    try:
        return [function(item) for item in items], None
    except Exception as error:
        return None, error


def _forked(function, *arguments):
    """The number of a new process that calls ``function`` and ends, whatever happens: it never returns from here.

    It receives no signal that ends programs: a terminal sends them to all, and the first process decides what to do.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of other threads, such as tqdm's: they don't exist in the new process, and a lock that
            # one of them holds stays locked there. They hold none that it needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if process == 0:
            try:
                function(*arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)  # without the exit handlers of the process that it was forked from
        return process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _serve(connection, others, function):
    """A worker's life: it ends with the process that forked it, if not before."""
    gc.freeze()  # what the first process leaves to the garbage collector isn't this one's to clean up
    for other in others:
        other.close()
    for number in map(int, os.listdir("/proc/self/fd")):  # up to SC_OPEN_MAX there may be a billion
        if number > 2 and number != connection.fileno():
            with contextlib.suppress(OSError):
                os.close(number)  # the first process's: a lock, say, is held until all its copies are closed
    with contextlib.suppress(EOFError, OSError):
        while True:
            results, error = _reply(function, connection.recv())
            if error:
                error.add_note("In a worker process:\n" + "".join(traceback.format_exception(error)))
            connection.send((results, error))


def _end(owner, connections, processes):
    if os.getpid() != owner:  # another process that was forked from it, by other code
        return
    for process in processes:  # killed, because what it still computes would go into shared arrays
        # Where SIGCHLD is ignored, the number of one that ended may be another process's by now.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(process, signal.SIGKILL)
    for connection in connections:
        connection.close()
    for process in processes:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)
