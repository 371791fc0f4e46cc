"""The house of floors: a file imports only from floors below its own. And: no framework, and only what CuPy has."""

import ast
import sys

import pytest
from conftest import ROOT, output

PACKAGE = ROOT / "minijepa"

# From the ground up; a file may import what is named before it, and the files of its own room in the order given there.
FLOORS = """
errors cli __main__ files backend signature
tensor
autograd
ops
nn
gradcheck
data
models
config
training.ema training.optim
kernels
training.schema training.exported training.checkpoint training.lock training.provenance training.lanes training.mpi
evaluation.checks evaluation.logistic evaluation.neighbours evaluation.probing
evaluation.monitors
pictures
training.steps training.metrics training.report training.trainer training.clock training.run
evaluation.verdict evaluation.kept evaluation.evaluate evaluation.patches evaluation.gallery
training.curves export explain
exercise
""".split()
HEIGHT = {name: height for height, name in enumerate(FLOORS)}
LATE = {  # imported inside of a function
    ("backend", "kernels"),  # on a GPU: a CPU needs nothing of kernels/
    *((name, "pictures") for name in ("tensor", "autograd", "models", "config")),  # what a notebook shows of it
}
THIRD_PARTY = {"numpy", "cupy", "PIL", "tqdm", "cuda", "safetensors", "mpi4py"}  # cuda.pathfinder comes with CuPy


def files():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def part_of(*parts):
    """The entry of FLOORS that a module belongs to: its room, or the module where a room spans several floors."""
    return next(name for name in (".".join(parts[:2]), parts[0]) if name in HEIGHT)


def imports(path):
    """Every module, or name of a module, that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_of(path):
    return [part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"]


def test_every_part_has_a_floor():
    modules = [parts_of(p) for p in files()]
    assert {part_of(*parts) for parts in modules if parts not in (["training"], ["evaluation"])} == set(HEIGHT)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards_and_name_no_framework(path):
    parts = parts_of(path)
    if parts in (["training"], ["evaluation"]):  # rooms on several floors: their __init__.py imports nothing
        assert not list(imports(path))
        return
    here = part_of(*parts)
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "minijepa":
            there = part_of(*rest)
            below = there == here or HEIGHT[there] < HEIGHT[here]
            assert below or (here, there) in LATE, f"{path} imports {name}"
        else:
            assert first in sys.stdlib_module_names or first in THIRD_PARTY, f"{path} imports {name}"


def test_a_cpu_imports_nothing_of_the_kernels():
    """All command lines, a training step and features; ``Function.apply`` finds no twin."""
    code = """if True:
        import sys
        import train, probe, minijepa.explain.__main__, minijepa.gradcheck.__main__
        from minijepa import Config, Function
        from minijepa.data import Dataset, make_shapes
        from minijepa.training.trainer import Trainer
        images, labels = make_shapes(8)
        data = Dataset("shapes", ("",) * 10, images, labels, images, labels, (0.5,) * 3, (0.25,) * 3)
        trainer = Trainer(Config.preset("smoke", batch_size=8), data)
        trainer.train_step(0)
        trainer.model.features(images)
        assert not [name for name in sys.modules if name.startswith("minijepa.kernels")]
        assert not [op for op in Function.__subclasses__() if op.twin]
    """
    output("-c", code)


def test_the_listing_stays_short():
    """Whoever opens the package sees it at a glance: a new file goes into a room."""
    assert len({p.relative_to(PACKAGE).parts[0] for p in files()} - {"__main__.py"}) <= 20


def test_files_and_programs_stay_short():
    """A file that passes 300 lines wants a second look; those that had it are listed here."""
    looked_at = {
        "autograd.py": 450,  # the engine: half of it is documentation and errors
        "gradcheck/cases.py": 420,  # a table
    }
    for path in [*files(), ROOT / "train.py", ROOT / "probe.py"]:
        name = str(path.relative_to(PACKAGE)) if PACKAGE in path.parents else path.name
        assert len(path.read_text().splitlines()) <= looked_at.get(name, 300), name
