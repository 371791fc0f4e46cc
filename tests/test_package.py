"""The package as others install it: the wheel is whole and works, requirements agree, commands are listed."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy
import pytest
from conftest import ROOT, python
from tiny import command

import probe
import train
from minijepa import Config, __version__, cli, export
from minijepa import __main__ as listing
from minijepa.cli import REQUIRED
from minijepa.config import MEASURED, PRESETS
from minijepa.training import curves

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OLDEST = 77  # setuptools

INSTALLED = """
import importlib.metadata, sys
import numpy as np
import minijepa
from minijepa import Config
from minijepa.data import Dataset
from minijepa.gradcheck.__main__ import main as gradcheck
from minijepa.kernels import launcher
from minijepa.training.trainer import Trainer

assert minijepa.__file__.startswith(sys.prefix), minijepa.__file__
assert minijepa.__version__ == importlib.metadata.version("minijepa")
assert gradcheck(["gelu"]) == 0
images, labels = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), np.uint8), np.arange(8).astype(np.uint8)
data = Dataset("noise", tuple("abcdefgh"), images, labels, images, labels, (0.5,) * 3, (0.25,) * 3)
trainer = Trainer(Config.preset("smoke", batch_size=8, epochs=1, warmup_epochs=0), data, "cpu")
before = trainer.model.flat.data.copy()
assert np.isfinite(float(trainer.train_step(0)["loss"])) and (trainer.model.flat.data != before).mean() > 0.9
assert "attention_backward" in launcher.source("attention") and "float warp_sum" in launcher.source("attention")
"""


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copied(parent):
    """The package's sources in a folder of their own: building leaves files behind."""
    shutil.copytree(ROOT / "minijepa", parent / "minijepa", ignore=shutil.ignore_patterns("__pycache__"))
    files = {str(path.relative_to(parent)) for path in parent.rglob("*") if path.is_file()}
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, parent)
    return files


def test_the_wheel_works_in_a_fresh_environment(tmp_path):
    """Built and installed without network; what it requires comes from this environment."""
    pytest.importorskip("pip")
    found = [d.version for d in importlib.metadata.distributions(name="setuptools")] or ["0"]
    if int(found[0].partition(".")[0]) < OLDEST:
        pytest.skip(f"setuptools {OLDEST} or newer builds the wheel: pip install -r requirements-test.txt")
    files, pip = copied(tmp_path / "source"), [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, tmp_path / "source"]
    run(*pip, *wheel)
    (wheel,) = tmp_path.glob("minijepa-*.whl")
    with zipfile.ZipFile(wheel) as content:
        packed = set(content.namelist())
    assert {name for name in packed if ".dist-info/" not in name} == files

    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").splitlines()
    run(*pip, "install", "--no-index", "--no-deps", "--target", site, wheel)
    (Path(site) / "required.pth").write_text(str(Path(numpy.__file__).parents[1]) + "\n")
    assert "all passed" in run(python, "-I", "-c", INSTALLED, cwd=tmp_path)
    assert run(python, "-I", "-m", "minijepa", "--version", cwd=tmp_path) == f"minijepa {__version__}\n"


def requirements(name):
    """The packages that a requirements file names itself, and the files that it includes."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    included = {line.removeprefix("-r ") for line in lines if line.startswith("-r ")}
    return {line.replace('"', "'") for line in lines if line and not line.startswith("-r ")}, included


def test_the_requirements_files_say_what_pyproject_says():
    project, extras = PYPROJECT["project"], PYPROJECT["project"]["optional-dependencies"]
    pytest_itself = {line for line in extras["test"] if line.startswith("pytest")}
    assert requirements("requirements.txt") == (set(project["dependencies"]) | pytest_itself, set())
    assert requirements("requirements-test.txt") == (set(extras["test"]) - pytest_itself, {"requirements.txt"})
    for extra in ("cuda", "mpi"):
        assert requirements(f"requirements-{extra}.txt") == (set(extras[extra]), {"requirements.txt"})
    assert {re.match(r"\w+", line)[0] for line in project["dependencies"]} == set(REQUIRED.values())
    setuptools = {f"setuptools>={OLDEST}"}
    assert setuptools == set(PYPROJECT["build-system"]["requires"]) and setuptools <= set(extras["test"])


@pytest.mark.parametrize("command", [["train.py"], ["probe.py", "--help"], ["-m", "minijepa.gradcheck", "gelu"]])
def test_a_missing_package_is_one_line(command):
    """-S: without the packages that are installed."""
    done = python("-S", *command)
    name = "minijepa" if command[0] == "-m" else command[0]
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"{name}: the package numpy is missing: pip install -r requirements.txt")
    assert done.stderr.count("\n") == 1


def test_where_a_package_is_missing_an_import_says_which():
    done = python("-S", "-c", "import minijepa")
    assert "ModuleNotFoundError: the package numpy is missing: pip install" in done.stderr.splitlines()[-1]


def test_a_program_that_imports_the_package_is_no_command_of_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-m"])  # as while Python looks for the module that it is to run
    for words, name in (("-m theirs.main", ""), ("-m minijepa.export", "minijepa"), ("-mminijepa", "minijepa")):
        monkeypatch.setattr(sys, "orig_argv", ["python", *words.split()])
        assert cli.command() == name


@pytest.mark.parametrize("main", [train.main, probe.main, curves.main, export.main, listing.main])
def test_every_program_tells_its_version(main, capsys):
    assert command(capsys, main, "--version") == (0, f"minijepa {__version__}\n", "")


def test_every_module_that_can_be_run_is_listed(capsys):
    runnable = {
        ".".join(part for part in path.relative_to(ROOT / "minijepa").with_suffix("").parts if part != "__main__")
        for path in (ROOT / "minijepa").rglob("*.py") if 'if __name__ == "__main__"' in path.read_text()
    }  # fmt: skip
    assert {name.split()[0] for name in listing.MODULES} == runnable - {""}
    assert {name.split()[0] for name in listing.PROGRAMS} == {path.name for path in ROOT.glob("*.py")}
    assert listing.main([]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 80


def test_help_tells_what_the_presets_take_and_give(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = train.parser().format_help()
    assert max(map(len, text.splitlines())) <= 80
    assert MEASURED.keys() == PRESETS.keys()
    for name, told in MEASURED.items():
        c = Config.preset(name)
        row = f"  {name} {c.encoder_embed_dim} wide, {c.encoder_depth} blocks {c.epochs} {' '.join(told)}"
        assert row.split() in [line.split() for line in text.splitlines()]
    for figure in MEASURED["laptop"]:  # the README quotes the same run
        assert figure in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("options", [[], ["--no-skips"]])
def test_a_skip_fails_where_none_is_allowed(tmp_path, options):
    """A test's own and a whole file's."""
    (tmp_path / "test_one.py").write_text("import pytest\npytest.skip('no git', allow_module_level=True)")
    (tmp_path / "test_two.py").write_text("import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('no g++')")
    command = ["-m", "pytest", "-p", "conftest", "--continue-on-collection-errors", *options]
    done = python(*command, cwd=tmp_path, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    assert done.returncode == len(options)
    found = re.findall(r"--no-skips forbids: Skipped: (no g\+\+|no git)\n", done.stdout)
    assert set(found) == ({"no g++", "no git"} if options else set()), done.stdout


def test_the_workflow_runs_what_ci_runs_and_contributing_names_what_is_there():
    assert "run: bash .ci/run" in (ROOT / ".github/workflows/tests.yml").read_text()
    assert "pytest --no-skips" in (ROOT / ".ci/run").read_text()
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"(?:minijepa|tests|docs)/[\w/.]*\w", text)
    assert len(named) > 10 and [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(("command", "status"), [("gradcheck add", 0), ("explain layer_norm", 0), ("exercise rows", 1)])
def test_a_module_runs_as_a_program_and_without_a_warning(tmp_path, command, status):
    (tmp_path / "exercise_rows.py").touch()  # an attempt that is not right yet
    done = python("-W", "error", "-m", *f"minijepa.{command}".split(), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (status, "") and done.stdout
