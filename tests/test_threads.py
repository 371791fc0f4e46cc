"""Worker threads, and the BLAS under them."""

import signal
import threading
import time

import pytest

from minijepa.backend.threads import at_most, blas_info, on_threads


def test_on_threads_gives_results_in_order_from_several_threads():
    both = threading.Barrier(2, timeout=10)

    def slow(item):
        if item < 2:
            both.wait()  # two threads are at it
        return item * item, threading.get_ident()

    results, threads = zip(*on_threads(slow, iter(range(20)), 2))
    assert results == tuple(i * i for i in range(20)) and len({*threads}) == 2
    assert on_threads(slow, [], 8) == []
    one = on_threads(lambda _: threading.get_ident(), range(5), 1)
    assert {*one} == {threading.get_ident()}


def test_no_more_threads_than_the_command_line_allows():
    def threads():
        return {*on_threads(lambda _: time.sleep(0.02) or threading.get_ident(), range(6), 3)}

    with pytest.raises(ValueError), at_most(1):
        assert threads() == {threading.get_ident()}
        raise ValueError
    with at_most(2):
        assert len(threads()) == 2
    assert len(threads()) == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_on_threads_awaits_the_others_before_it_raises(error):
    """After an error, no thread may still be writing."""
    written = []

    def work(item):
        if item == 0:
            raise error("of the first")
        time.sleep(0.05)
        written.append(item)

    with pytest.raises(error, match="of the first"):
        on_threads(work, range(50), 4)
    before = list(written)
    time.sleep(0.1)
    assert written == before and len(written) < 10


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")
def test_on_threads_awaits_the_others_when_it_is_interrupted():
    done, caller = [], threading.get_ident()
    helper_began, caller_done = threading.Event(), threading.Event()

    def work(item):
        if threading.get_ident() == caller:
            helper_began.wait(10)
            done.append(item)
            caller_done.set()
        else:
            helper_began.set()
            caller_done.wait(10)
            time.sleep(0.1)  # now the caller waits
            signal.pthread_kill(caller, signal.SIGUSR1)
            time.sleep(0.2)
            done.append(item)

    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            on_threads(work, range(2), 2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(done) == [0, 1]


@pytest.mark.parametrize("allowed", [0, 1])
def test_where_no_further_thread_can_be_had_fewer_do_the_work(monkeypatch, allowed):
    """As under a container's limit of processes."""
    start, started = threading.Thread.start, []

    def limited(self):
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert on_threads(lambda item: item + 1, range(30), 8) == [*range(1, 31)]
    assert len(started) == allowed


def test_blas_info_names_the_library_and_what_it_runs():
    info = blas_info()
    assert info.keys() == {"name", "version", "kernel", "threads"}
    if "openblas" in info["name"]:
        assert info["version"].startswith("0.") and info["threads"] == 1
        assert info["kernel"].isalnum()
    else:
        assert info["name"] and info["kernel"] is None
