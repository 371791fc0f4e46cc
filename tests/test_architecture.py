"""The house of floors: a file imports only from floors below its own. And: no framework, and only what CuPy has."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minijepa"

# From the ground up; within a floor, a file may import what stands before it in the line.
FLOORS = [
    "errors files ragged cublas backend signature samples logistic",
    "config",
    "kernels",
    "autograd",
    "ops",
    "nn gradcheck",
    "data models",
    "optim schedules ema checkpoint features",
    "lanes graph pictures record inspection probing monitors evaluation training run gallery profiling explain_step",
    "explain",
]
HEIGHT = {name: (i, j) for i, floor in enumerate(FLOORS) for j, name in enumerate(floor.split())}
KNOWN = {
    ("config", "data"),  # inside of a function: Config asks the masker whether masks can be drawn at all
}
THIRD_PARTY = {"numpy", "cupy", "PIL", "tqdm", "cuda"}  # cuda.pathfinder comes with CuPy


def files():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Every module name that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from names if node.module == "minijepa" else [node.module]


def test_every_part_has_a_floor():
    assert {part_of(p) for p in files()} == set(HEIGHT)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards_and_name_no_framework(path):
    here = part_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "minijepa":
            there = parts[1]
            assert there == here or HEIGHT[there] < HEIGHT[here] or (here, there) in KNOWN, f"{path} imports {name}"
        else:
            assert parts[0] in sys.stdlib_module_names or parts[0] in THIRD_PARTY, f"{path} imports {name}"


def test_files_and_programs_stay_short():
    """A file that passes 300 lines wants a second look; those that had it stand here."""
    looked_at = {
        "autograd.py": 490,  # the engine: half of it is documentation and errors
        "gradcheck/cases.py": 500,  # a table
    }
    for path in [*files(), ROOT / "train.py", ROOT / "probe.py"]:
        name = str(path.relative_to(PACKAGE)) if PACKAGE in path.parents else path.name
        assert len(path.read_text().splitlines()) <= looked_at.get(name, 300), name
