"""Worker processes."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from tiny import raising

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
    own[...] = 1
    assert workers.map([0, 1]) == [4, 4]  # what was done before the first map is known to all
    own[...], ours[4] = 2, 8
    assert workers.map([0, 1]) == [8, 8]
    assert ours.tolist() == [10, 5, 2, 3, 8]  # worker 1 saw the change of ours, but not of its own
    assert shared(np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert shared(np.ones((2, 3), np.float32)).tolist() == [[1, 1, 1]] * 2
    unpickled = copy.deepcopy(ours)
    unpickled[0] = 1
    assert ours[0] == 10


@pytest.mark.parametrize("item", [0, 1])
def test_an_error_is_raised_and_the_workers_go_on(item):
    def work(number):
        if number == item:
            raise ZeroDivisionError(f"in {number}")
        return number

    workers = Workers(work, 2)
    with pytest.raises(ZeroDivisionError, match=f"in {item}") as caught:
        workers.map([0, 1])
    assert ('raise ZeroDivisionError(f"in {number}")' in "".join(getattr(caught.value, "__notes__", ""))) == bool(item)
    assert workers.map([2, 3]) == [2, 3]


@pytest.mark.parametrize("seconds", [0, 60], ids=["what they have computed", "what they are computing"])
def test_an_interruption_ends_workers_at_once_and_the_next_map_has_its_own_results(seconds):
    memory = shared(np.zeros(1))

    def work(item):
        if item == 0:
            raise KeyboardInterrupt
        if item == 1:
            time.sleep(seconds)
            memory[0] = 1
        return item

    workers, started = Workers(work, 2), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workers.map([0, 1])
    assert time.monotonic() - started < 30 and not (seconds and memory[0])
    assert workers.map([2, 3]) == [2, 3]


def test_workers_keep_no_file_of_the_first_process_open():
    """A lock, for one, is held until all copies of its descriptor are closed."""
    reader, writer = os.pipe()
    workers = Workers(lambda item: item, 2)
    assert workers.map([0, 1]) == [0, 1]
    os.close(writer)
    os.set_blocking(reader, False)
    assert os.read(reader, 1) == b""  # the end; BlockingIOError while another process may write
    os.close(reader)


def test_a_killed_worker_is_a_training_error():
    workers = Workers(lambda item: item or os.kill(os.getpid(), signal.SIGKILL), 2)
    with pytest.raises(TrainingError, match="a worker process was killed"):
        workers.map([1, 0])
    assert workers.map([1, 2]) == [1, 2]


def test_where_no_process_can_be_forked_fewer_do_the_work(monkeypatch):
    monkeypatch.setattr(os, "fork", raising(BlockingIOError("Resource temporarily unavailable")))
    assert Workers(lambda item: item + 1, 4).map([1, 2, 3]) == [2, 3, 4]


def run(program, **options):
    """Run a program that may use Workers, in a session of its own; returns when all of them have closed its pipes."""
    imports = "import gc, os, signal, threading\nfrom minijepa.backend.processes import Workers\n"
    command = [sys.executable, "-W", "error", "-c", imports + textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True, **options)


@pytest.mark.parametrize("ending", ["pass", "os.kill(os.getpid(), signal.SIGKILL)", "os.killpg(0, signal.SIGINT)"])
@pytest.mark.parametrize("closed", [(), (0,), (0, 1)])
def test_workers_end_with_the_process_that_forked_them(ending, closed):
    program = f"""
        out = os.dup(1)
        for descriptor in {closed}:
            os.close(descriptor)  # then a pipe gets its number
        first, second = Workers(lambda item: os.getpid(), 3), Workers(lambda item: os.getpid(), 2)
        pids = *first.map([0, 1, 2])[1:], second.map([0, 1])[1]
        os.write(out, " ".join(map(str, pids)).encode())
        {ending}
        """
    assert len({*run(program).stdout.split(), str(os.getpid())}) == 4


def test_a_terminals_signal_ends_no_worker_that_the_first_process_still_needs():
    """Ctrl-C reaches all processes of a run, which then finishes its step and saves."""
    program = """
        workers = Workers(lambda item: os.getpid(), 2)
        before = workers.map([0, 1])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # in this process alone
        os.killpg(0, signal.SIGINT)
        print(workers.map([0, 1]) == before)
        """
    done = run(program)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_a_worker_leaves_alone_what_the_first_process_left_to_the_garbage_collector():
    program = """
        gc.disable()
        first = Workers(lambda item: item, 2)
        first.itself = first
        first.map([0, 1])
        del first
        print(Workers(lambda item: [gc.collect(), item][1], 2).map([0, 1]))
        """
    done = run(program)
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 1]\n", "", 0)


def test_where_others_collect_ended_processes_all_is_well():
    program = """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        workers = Workers(lambda item: item and os.kill(os.getpid(), signal.SIGKILL), 2)
        try:
            workers.map([0, 1])
        except Exception as error:
            print(error)
        print(workers.map([0, 0]))
        """
    done = run(program)
    assert "was killed" in done.stdout and done.stdout.endswith("\n[0, 0]\n") and done.stderr == ""


def test_a_copy_of_the_first_process_that_other_code_made_ends_no_workers():
    program = """
        workers = Workers(lambda item: item + 1, 2)
        workers.map([0, 1])
        if os.fork() == 0:
            raise SystemExit
        os.wait()
        print(workers.map([1, 2]))
        """
    done = run(program)
    assert (done.stdout, done.stderr) == ("[2, 3]\n", "")


def test_workers_can_be_forked_beside_other_threads_and_from_one():
    program = """
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        work = lambda: print(Workers(lambda item: item + 1, 3).map([1, 2, 3]), flush=True)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        work()
        """
    done = run(program)
    assert (done.stdout, done.stderr, done.returncode) == ("[2, 3, 4]\n" * 2, "", 0)


def test_a_result_that_cannot_be_sent_ends_the_worker_and_not_the_program_twice():
    program = """
        try:
            Workers(lambda item: item and (lambda: None), 2).map([0, 1])
        except Exception as error:
            print(error)
        print("once")
        """
    done = run(program)
    assert done.stdout.count("once") == 1 and "was killed" in done.stdout and "local object" in done.stderr
