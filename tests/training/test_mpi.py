"""One run in several processes: the same bits, and an end for all when one has an error."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, assert_same_run, finish, write_cifar
from tiny import NETWORK, flags, refusal

import train
from minijepa.errors import ConfigError
from minijepa.training import mpi
from minijepa.training.lanes import Lanes

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
needs_mpi = pytest.mark.skipif(
    not (MPIEXEC and importlib.util.find_spec("mpi4py")), reason="no MPI: pip install -r requirements-mpi.txt"
)
# 3 epochs of 2 steps; a batch has 7 chunks, which 2 or 3 ranks can't share out evenly
SETTINGS = NETWORK | dict(batch_size=100, epochs=3, warmup_epochs=1, augment_flip=True, augment_crop=4, knn_every=2)

TRAIN = """if True:
    import os, signal, sys, time, train
    from minijepa.training import mpi
    from minijepa.training.trainer import Trainer

    def at(step, rank, what):  # before that step
        real = Trainer.train_step

        def train_step(self, n):
            if (n, self.ranks.rank) == (step, rank):
                what(self)
            return real(self, n)

        Trainer.train_step = train_step

    mpi.PATIENCE = 0.3
    CHANGE
    sys.exit(train.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run in one process; its data are beside it."""
    parent = tmp_path_factory.mktemp("whole")
    write_cifar(parent, 40, 20)
    assert train.main(arguments(parent, parent / "run")) == 0
    return parent / "run"


def arguments(parent, run, **changes):
    places = [f"--data-dir={parent / 'data'}", f"--run-dir={run}"]
    return ["--device=cpu", "--threads=1", *places, *flags(SETTINGS | changes)]


def resumed(parent, run):
    return ["--threads=1", f"--data-dir={parent / 'data'}", f"--run-dir={run}", "--resume"]


def started(*parts, change="pass"):
    """mpiexec, running train.py: ``parts`` are pairs of a number of processes and their arguments."""
    command = [MPIEXEC]
    for count, options in parts:
        program = [sys.executable, "-c", TRAIN.replace("CHANGE", change)]
        command += [*([":"] if command[1:] else []), "-n", str(count), *program, *map(str, options)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, text=True, cwd=ROOT)


def ended(*parts, change="pass"):
    """(exit status, stdout, stderr) of mpiexec, which ends."""
    process = started(*parts, change=change)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


def step_of(folder):
    return finish(folder)[0]["step"]


@needs_mpi
def test_two_processes_give_the_same_bits_as_one(whole, tmp_path):
    status, out, err = ended((2, ["--mpi", *arguments(whole.parent, tmp_path / "run")]))
    assert (status, err) == (0, "")
    assert "with 1 worker in each of 2 processes" in out and out.count("epoch   1/3") == 1
    assert_same_run(tmp_path / "run", whole)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in whole.iterdir()}


@needs_mpi
def test_interrupted_killed_and_resumed_with_other_numbers_of_processes(whole, tmp_path):
    """A signal that one rank gets, or mpiexec, stops all after the same step, and they save once. A rank that is killed
    ends all, and leaves the checkpoint. The end is that of a run in one process."""
    run, parent = tmp_path / "run", whole.parent
    change = "at(0, 2, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))"
    status, out, err = ended((3, ["--mpi", *arguments(parent, run)]), change=change)
    assert (status, err) == (128 + signal.SIGTERM, "") and step_of(run) == 1
    assert out.endswith(
        "interrupted at step 1; saved. To continue:\n"
        f"    mpiexec -n 3 python train.py --mpi --run-dir {run} --resume --data-dir {parent / 'data'}\n"
    )

    change = "at(3, 1, lambda trainer: os.kill(os.getpid(), signal.SIGKILL))"
    status, out, err = ended((2, ["--mpi", *resumed(parent, run)]), change=change)
    assert status != 0 and "done" not in out and step_of(run) == 2

    change = "at(4, 0, lambda trainer: (print('now', flush=True), time.sleep(0.4)))"
    process = started((2, ["--mpi", *resumed(parent, run)]), change=change)
    for line in process.stdout:
        if line == "now\n":
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and "Traceback" not in err and step_of(run) == 5
    assert out.count("interrupted at step 5; saved") == 1

    status, out, err = ended((3, ["--mpi", *resumed(parent, run)]))
    assert (status, err) == (0, "")
    assert_same_run(run, whole)


ALTER = "at(1, 1, lambda trainer: trainer.optimizer.v.__setitem__(5, 1.5))"
FAIL = "at(3, 1, lambda trainer: 1 / 0)"
FULL = "from minijepa.training import run; run.draw_curves = lambda *args: open('/nowhere/curves.png', 'w')"


@needs_mpi
@pytest.mark.parametrize("change, status, told, lines, saved", [
    (ALTER, 1, "train.py: step 1: the checksum of weights is", 1, 0),  # told by rank 0, for all
    (FAIL, 1, "ZeroDivisionError", None, 2),  # a traceback
    (FULL, 2, "train.py: rank 0 (", None, 2),  # MPI adds a line of its own to what one rank tells
])  # fmt: skip
def test_an_error_ends_all(change, status, told, lines, saved, whole, tmp_path):
    run = tmp_path / "run"
    found, out, err = ended((2, ["--mpi", *arguments(whole.parent, run)]), change=change)
    assert found == status and told in err and "done" not in out
    assert err.count("\n") == (lines or err.count("\n")) and err.count(told) == 1
    assert step_of(run) == saved


@needs_mpi
def test_ranks_that_can_not_agree_are_refused(whole, tmp_path):
    """Data that one of them lacks, and other images; nothing is made."""
    write_cifar(tmp_path, 40, 20, spread=1)
    for data, told in ((tmp_path / "nothing", "train.py: rank 1 ("), (tmp_path / "data", "crc32 is ")):
        parts = [(1, ["--mpi", *arguments(parent, tmp_path / "run")]) for parent in (whole.parent, data.parent)]
        parts[1][1][3] = f"--data-dir={data}"
        change = "from minijepa.data import cifar10; cifar10.URL = 'file:///nowhere'"
        status, out, err = ended(*parts, change=change)
        assert status == 2 and told in err and err.count("\n") == 1 and not out and not (tmp_path / "run").exists()


@needs_mpi
@pytest.mark.parametrize("on_all", [True, False])
def test_a_missing_package_is_one_line_for_all(on_all, whole, tmp_path):
    """Without it, a process can't tell those that have it, and wait for it."""
    options = ["--mpi", *arguments(whole.parent, tmp_path / "run")]
    change = ("" if on_all else "if os.environ.get('PMI_RANK') == '1': ") + "sys.modules['mpi4py'] = None"
    status, out, err = ended((2, options), change=change)
    assert status == 2 and "--mpi needs mpi4py and an MPI: pip install -r requirements-mpi.txt" in err
    assert err.count("\n") == 1 and not out


@needs_mpi
def test_mpiexec_without_the_flag_is_one_line(whole, tmp_path):
    status, out, err = ended((2, arguments(whole.parent, tmp_path / "run")))
    assert status == 2 and not out
    assert err == "train.py: mpiexec started this program 2 times: add --mpi, so that they share one run\n"


# ------------------------------------------------------------------------------------------------------ in one process


@pytest.mark.parametrize("size, count, device, told", [
    (9, 9, "cpu", "mpiexec -n 9: a step has 8 lanes, so at most 8 processes can share it"),
    (1, 2, "cpu", "mpiexec started 2 processes, but mpi4py's MPI (Some 1.0) sees 1"),
    (2, 2, "cuda", "--mpi is for CPUs: "),
])  # fmt: skip
def test_impossible_requests_are_refused_by_the_first_process(size, count, device, told, monkeypatch):
    library = SimpleNamespace(COMM_WORLD=SimpleNamespace(size=size), Get_library_version=lambda: "Some 1.0\nbuilt")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=library))
    monkeypatch.setattr(mpi, "started", lambda: (0, count))
    with pytest.raises(ConfigError) as error:
        mpi.joined(True, device)
    assert str(error.value).startswith(told)
    monkeypatch.setattr(mpi, "started", lambda: (1, count))
    monkeypatch.setattr(mpi.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as end:
        mpi.joined(True, device)
    assert end.value.code == 2


def test_without_mpiexec_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    told = refusal(capsys, train.main, "--mpi", "--preset=smoke")
    assert told.startswith("train.py: --mpi needs mpi4py and an MPI")


def test_only_the_first_process_prints(monkeypatch, capsys):
    for number, printed in ((0, "seen\n"), (1, "")):
        monkeypatch.setattr(mpi, "started", lambda n=number: (n, 2))
        with mpi.first_prints():
            print("seen")
        assert capsys.readouterr().out == printed


def ranks_of(size, rank=0, everyone=()):
    """Ranks without MPI: when all say in turn what they have, they have ``everyone``."""
    ranks = object.__new__(mpi.Ranks)
    ranks.size, ranks.rank, ranks.hosts = size, rank, [f"host{r}" for r in range(size)]
    ranks.comm = SimpleNamespace(allgather=lambda own: everyone)
    return ranks


def test_what_differs_is_named_with_its_rank():
    facts = {"numpy": "2.4.0", "BLAS kernel": "Haswell"}
    assert ranks_of(2, everyone=[facts, facts]).difference(lambda: facts) == ""
    text = ranks_of(3, everyone=[facts, facts, facts | {"BLAS kernel": "Zen"}]).difference(lambda: facts)
    assert text == "BLAS kernel is Zen on rank 2 (host2), but Haswell on rank 0 (host0)"


@pytest.mark.parametrize("size", range(1, 9))
def test_every_place_and_every_lane_has_one_rank(size):
    ranks, vector = ranks_of(size), np.arange(101)
    assert np.concatenate([ranks._part(vector, rank) for rank in range(size)]).tolist() == vector.tolist()
    values = [[f"lane {lane}" for lane in range(rank, 5, size)] for rank in range(size)]
    assert ranks_of(size, everyone=values)._in_order(values[0], 5) == [f"lane {lane}" for lane in range(5)]


def test_lanes_hold_only_the_vectors_that_their_rank_computes():
    from minijepa import IJEPA, Config

    lanes = Lanes(IJEPA(Config(**NETWORK)), 1, ranks_of(3, 2))
    assert list(lanes.vectors) == [2, 5]
