"""One run in several processes, on one machine or more: ``mpiexec -n K python train.py --mpi`` (docs/mpi.md).

Each process, or rank, holds the whole model and computes some of the lanes of every batch.
"""

import contextlib
import io
import os
import platform
import sys
import time
import traceback

import numpy as np

from minijepa.backend.threads import available_cores, worker_threads
from minijepa.cli import ended_by, tell
from minijepa.errors import ConfigError, MinijepaError
from minijepa.training.lanes import LANES, Alone, add_in_order

HEARD = 0.5  # seconds before an abort, on which mpiexec drops the lines that it has not passed on yet
PATIENCE = 3  # seconds that a rank with an error waits for the others to have one too
VARIABLES = (("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))  # MPICH and Intel, Open MPI


class Ranks(Alone):
    """One of several processes that ``mpiexec`` started. All call the same methods in the same order.

    A context manager. Rank 0 reports an error that all ranks have. An error on some ranks would leave the others
    waiting forever, so its rank reports it and ends them all.
    """

    def __init__(self, mpi):
        self.mpi, self.comm = mpi, mpi.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size
        self.failing = self.comm.Dup()  # used only by ranks with an error
        self.hosts = self.comm.allgather(platform.node())
        if self.rank:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def __exit__(self, kind, error, trace):
        if error is None:
            return
        if self._all_fail():
            if self.rank:
                sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            return
        status = 1
        if found := ended_by(error):
            status, text = found
            tell(f"train.py: {self._name(self.rank)}: {text}", sys.stderr)
        elif isinstance(error, SystemExit):
            status = error.code
        else:
            traceback.print_exception(error)
        sys.stderr.flush()
        time.sleep(HEARD)
        self.comm.Abort(status)
        os._exit(status)  # in case Abort returns

    def _all_fail(self):
        request, until = self.failing.Ibarrier(), time.monotonic() + PATIENCE
        while not request.Test():
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def _name(self, rank):
        return f"rank {rank} ({self.hosts[rank]})"

    def threads(self, requested):
        """By default, the ranks on one machine share its cores."""
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(available_cores()))
        here = self.comm.Split_type(self.mpi.COMM_TYPE_SHARED).allgather(cores)
        share = max(1, len(set.union(*here)) // len(here))
        return self.each(lambda: worker_threads(share if requested is None else requested))

    def first(self, function):
        value, error = self.comm.bcast(_result(function) if self.rank == 0 else None)
        if error:
            raise error
        return value

    def each(self, function):
        value, problem = _result(function) if self.rank == 0 else (None, None)
        if problem := self.comm.bcast(problem):  # rank 0 is first: it may download what all read
            raise problem
        if self.rank:
            value, problem = _result(function)
        for rank, error in enumerate(self.comm.allgather(problem)):
            if isinstance(error, MinijepaError):
                raise type(error)(f"{self._name(rank)}: {error}")
            if error:
                raise error
        return value

    def gather(self, value):
        return self.comm.allgather(value)

    def share(self, *arrays):
        for array in arrays:
            self.comm.Bcast(array)

    def difference(self, facts):
        everyone = self.comm.allgather(facts())
        for rank, theirs in enumerate(everyone):
            for name, value in everyone[0].items():
                if theirs[name] != value:
                    return f"{name} is {theirs[name]} on {self._name(rank)}, but {value} on {self._name(0)}"
        return ""

    def sum_lanes(self, vectors, losses, used, total):
        """A float sum depends on its order, so ranks don't add their own lanes: each rank receives its part of the
        vector from every lane, adds them in order, and the sums are collected."""
        own = range(self.rank, used, self.size)
        others = [rank for rank in range(self.size) if rank != self.rank]
        mine = self._part(total, self.rank)
        parts = [self._part(vectors[i], self.rank) if i in own else np.empty_like(mine) for i in range(used)]
        requests = [self.comm.Irecv(parts[i], i % self.size, tag=i) for i in range(used) if i not in own]
        requests += [self.comm.Isend(self._part(vectors[i], rank), rank, tag=i) for i in own for rank in others]
        self.mpi.Request.Waitall(requests)
        add_in_order(parts, mine)
        sizes = [self._part(total, rank).size for rank in range(self.size)]
        self.comm.Allgatherv(self.mpi.IN_PLACE, [total, sizes])
        return sum(self._in_order(losses, used))

    def _part(self, vector, rank):
        return vector[vector.size * rank // self.size : vector.size * (rank + 1) // self.size]

    def _in_order(self, values, used):
        """The values of all lanes, in order, from those of this rank's."""
        found = self.comm.allgather(values)
        return [found[lane % self.size][lane // self.size] for lane in range(used)]


def _result(function):
    """(what ``function()`` returns, None), or (None, its error)."""
    try:
        return function(), None
    except Exception as error:
        return None, error


# ------------------------------------------------------------------------------------------------------------- starting


def started():
    """(this process's number, the number of processes), from mpiexec's environment; (0, 0) without mpiexec."""
    for number, count in VARIABLES:
        with contextlib.suppress(KeyError, ValueError):
            return int(os.environ[number]), int(os.environ[count])
    return 0, 0


@contextlib.contextmanager
def first_prints():
    """Only the first process prints, because all would print the same."""
    if started()[0] == 0:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def joined(wanted, device):
    """Ranks if ``wanted``, and at most one for each lane of a step; otherwise Alone.

    Raises ConfigError for an impossible device or number of processes.
    """
    number, count = started()
    if not wanted:
        if count > 1:
            _refuse(f"mpiexec started this program {count} times: add --mpi, so that they share one run", number)
        return Alone()
    if device == "cuda":
        text = "--mpi is for CPUs: on a GPU a batch is one lane, not eight, and a sum over machines would"
        _refuse(f"{text} need NCCL or a CUDA-aware MPI: leave out --mpi or --device cuda", number)
    mpi = _mpi(number, count)
    size = mpi.COMM_WORLD.size
    if size > LANES:
        _refuse(f"mpiexec -n {size}: a step has {LANES} lanes, so at most {LANES} processes can share it", number)
    if count > size:
        library = " ".join(mpi.Get_library_version().split("\n")[0].split(",")[0].split())
        text = f"mpiexec started {count} processes, but mpi4py's MPI ({library}) sees {size}"
        _refuse(f"{text}: start them with that MPI's own mpiexec", number)
    return Ranks(mpi)


def _refuse(text, number):
    """Raise ConfigError in the first process, and end the others silently."""
    if number:
        time.sleep(1)  # some launchers end all processes when one fails: let the first one print before that
        raise SystemExit(2)
    raise ConfigError(text)


def _mpi(number, count):
    """mpi4py's MPI, started."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it finds no MPI library
        problem = " ".join(str(error).split())
    else:
        return MPI
    text = f"--mpi needs mpi4py and an MPI: pip install -r requirements-mpi.txt ({problem})"
    if "PMI_FD" not in os.environ or count < 2:
        _refuse(text, number)
    # Processes that found MPI would wait for this one, so have MPICH's mpiexec end them all. If all lack MPI, the first
    # one reports it.
    time.sleep(1 if number else 0)
    tell(f"train.py: {platform.node()}: {text}", sys.stderr)
    time.sleep(HEARD)
    os.write(int(os.environ["PMI_FD"]), b"cmd=abort exitcode=2\n")
    raise SystemExit(2)
