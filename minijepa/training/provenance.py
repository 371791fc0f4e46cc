"""A run's provenance, for its config.json: the program, the command, and the libraries that its bits depend on."""

import datetime
import functools
import hashlib
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from minijepa.backend import gpu_info
from minijepa.backend.threads import blas_info
from minijepa.cli import VERSION

ROOT = Path(__file__).parent.parent.parent


def provenance(device, threads):
    """Facts about this process, as JSON values."""
    return {
        "version": VERSION, "commit": commit(), "command": shlex.join(sys.argv),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(), "numpy": np.__version__, "blas": blas_info(), "device": device,
        "threads": threads, **({"gpu": gpu_info()} if device == "cuda" else {}),
    }  # fmt: skip


def bits_depend_on():
    """{name: value} of everything that must be equal for two processes to give the same bits."""
    about = {"version": VERSION, "sources": sources()[:8], "numpy": np.__version__}
    blas = {f"BLAS {name}": value for name, value in blas_info().items()}
    return about | {"Python": ".".join(platform.python_version_tuple()[:2])} | blas


@functools.cache
def sources():
    """The SHA-256 of the package's source, with the names of its files: any change to it gives another one."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "minijepa").rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(ROOT)} {len(content)} ".encode() + content)
    return digest.hexdigest()


@functools.cache
def commit(root=ROOT):
    """The commit of the sources, with -dirty if they differ from it; None if they are not a checkout."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        (root / ".git").stat()  # without it, git would find an unrelated repository further up
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def changes(then, now):
    """The differences between two provenances that change last digits, in words; "" for none, or none known."""
    then, now = _of_bits(then), _of_bits(now)
    changed = [name for name in now if name in then and then[name] != now[name]]
    return "; ".join(f"{name} was {str(then[name])[:60]}, is {now[name]}" for name in changed)


def _of_bits(made):
    """{name: value} of what bits depend on, as far as ``made``, which was read from a file, has it."""
    made = made if isinstance(made, dict) else {}
    known = {name: made[name] for name in ("device", "numpy") if name in made}
    for key, title in (("blas", "BLAS"), ("gpu", "GPU")):
        about = made.get(key) if isinstance(made.get(key), dict) else {}
        known |= {f"{title} {name}": value for name, value in about.items()}
    return known
