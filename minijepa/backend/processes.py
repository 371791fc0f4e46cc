"""Worker processes on one machine: forked from this one, so they have its code and data, and what is :func:`shared`.

Threads take turns at the interpreter's lock, and wake each other up for it thousands of times a step; processes don't.
"""

import contextlib
import mmap
import multiprocessing
import os
import signal
import sys
import weakref

import numpy as np

from minijepa.errors import TrainingError

CAN_FORK = sys.platform == "linux"  # elsewhere a forked BLAS may not work


def shared(array):
    """A copy of ``array`` in memory that processes forked later have in common with this one."""
    if not array.size:
        return array.copy()
    copy = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Workers:
    """``count`` processes, this one among them, that compute ``function``.

    The others are forked now, with everything ``function`` refers to as it is now; later changes reach them only in
    :func:`shared` arrays. Arguments and results are pickled.
    """

    def __init__(self, function, count):
        self.function, self.count = function, count
        self._start()

    def _start(self):
        self.connections, processes = [], []
        self.end = weakref.finalize(self, _end, self.connections, processes)  # at exit too
        for _ in range(self.count - 1):
            ours, theirs = multiprocessing.Pipe()
            try:
                process = os.fork()
            except OSError:  # a container's limit, say: fewer do the work
                break
            if process == 0:
                _serve(theirs, self.function)
            theirs.close()
            self.connections.append(ours)
            processes.append(process)

    def map(self, items):
        """[function(item) for item in items]: item i is computed by worker i mod ``count``, worker 0 being this one.

        Raises the first error after all have stopped; TrainingError if a worker was killed.
        """
        if not self.end.alive:
            self._start()
        count = len(self.connections) + 1
        try:
            for number, connection in enumerate(self.connections, 1):
                connection.send(items[number::count])
            replies = [_reply(self.function, items[::count])]
            replies += [connection.recv() for connection in self.connections]
        except (EOFError, ConnectionError):
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


def _serve(connection, function):
    """A worker's life: it ends when it is told to, or with the process that forked it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all; the first process decides what to do
    own = connection.fileno()
    os.closerange(3, own)  # the first process's files: a lock, say, is held until all its copies are closed
    os.closerange(own + 1, os.sysconf("SC_OPEN_MAX"))
    with contextlib.suppress(EOFError, ConnectionError):
        while (items := connection.recv()) is not None:
            connection.send(_reply(function, items))
    os._exit(0)  # without the exit handlers of the process that it was forked from


def _end(connections, processes):
    for connection in connections:
        with contextlib.suppress(ConnectionError):
            connection.send(None)
        connection.close()
    for process in processes:
        os.waitpid(process, 0)
