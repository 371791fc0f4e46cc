"""Worker processes."""

import copy
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from minijepa.backend.processes import Workers, shared
from minijepa.errors import TrainingError


def test_map_gives_results_in_order_from_several_processes():
    workers = Workers(lambda item: (item * item, os.getpid()), 3)
    results, pids = zip(*workers.map(list(range(8))))
    assert results == tuple(i * i for i in range(8))
    assert len({*pids}) == 3 and pids[0] == pids[3] == os.getpid()
    assert workers.map([7]) == [(49, os.getpid())] and workers.map([]) == []
    assert len({pid for _, pid in Workers(lambda item: (item, os.getpid()), 1).map([1, 2, 3])}) == 1


def test_shared_arrays_are_common_and_others_are_not():
    ours, own = shared(np.arange(5.0)), np.zeros(5)

    def work(item):
        ours[item], own[item] = own.sum(), item
        return ours[4]

    workers = Workers(work, 2)
    own[...], ours[4] = 1, 8
    assert workers.map([0, 1]) == [8, 8]
    assert ours.tolist() == [5, 0, 2, 3, 8]  # worker 1 saw the change of ours, but not of its own
    assert shared(np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert shared(np.ones((2, 3), np.float32)).tolist() == [[1, 1, 1]] * 2
    unpickled = copy.deepcopy(ours)
    unpickled[0] = 1
    assert ours[0] == 5


@pytest.mark.parametrize("item", [0, 1])
def test_an_error_is_raised_and_the_workers_go_on(item):
    def work(number):
        if number == item:
            raise ZeroDivisionError(f"in {number}")
        return number

    workers = Workers(work, 2)
    with pytest.raises(ZeroDivisionError, match=f"in {item}"):
        workers.map([0, 1])
    assert workers.map([2, 3]) == [2, 3]


def test_after_an_interruption_the_next_map_has_its_own_results():
    def work(number):
        if number == 0:
            raise KeyboardInterrupt
        return number

    workers = Workers(work, 2)
    with pytest.raises(KeyboardInterrupt):
        workers.map([0, 1])
    assert workers.map([2, 3]) == [2, 3]


def test_a_killed_worker_is_a_training_error():
    workers = Workers(lambda item: item or os.kill(os.getpid(), signal.SIGKILL), 2)
    with pytest.raises(TrainingError, match="a worker process was killed"):
        workers.map([1, 0])
    assert workers.map([1, 2]) == [1, 2]


def test_where_no_process_can_be_forked_fewer_do_the_work(monkeypatch):
    def refused():
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    assert Workers(lambda item: item + 1, 4).map([1, 2, 3]) == [2, 3, 4]


@pytest.mark.parametrize("ending", ["pass", "os.kill(os.getpid(), signal.SIGKILL)", "os.killpg(0, signal.SIGINT)"])
def test_workers_end_with_the_process_that_forked_them(ending):
    program = f"""
        import os, signal
        from minijepa.backend.processes import Workers
        first, second = Workers(lambda item: os.getpid(), 3), Workers(lambda item: os.getpid(), 2)
        print(*first.map([0, 1, 2])[1:], second.map([0, 1])[1], flush=True)
        {ending}
        """
    program = textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, start_new_session=True
    )  # returns when all of them have closed its pipes
    assert len({*done.stdout.split(), str(os.getpid())}) == 4
