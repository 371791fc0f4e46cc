"""Where a run comes from, for its config.json: the program, the command, and the libraries that its bits depend on."""

import datetime
import functools
import platform
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np

from minijepa.backend.threads import blas_info
from minijepa.cli import VERSION

ROOT = Path(__file__).parent.parent.parent


def provenance(device, threads):
    """What is known of this process, as plain values for JSON."""
    return {
        "version": VERSION, "commit": commit(), "command": shlex.join(sys.argv),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(), "numpy": np.__version__, "blas": blas_info(), "device": device,
        "threads": threads,
    }  # fmt: skip


def bits_depend_on():
    """{name: value} of what gives two processes the same bits, if both have the same; ``sources``: a checksum."""
    sources = b"".join(path.read_bytes() for path in sorted((ROOT / "minijepa").rglob("*.py")))
    about = {"version": VERSION, "sources": f"{zlib.crc32(sources):08x}", "numpy": np.__version__}
    blas = {f"BLAS {name}": value for name, value in blas_info().items()}
    return about | {"Python": ".".join(platform.python_version_tuple()[:2])} | blas


@functools.cache
def commit(root=ROOT):
    """The commit of the sources, with -dirty where they differ from it; None where they are no checkout."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        (root / ".git").stat()  # where there is none, a repository further up is somebody else's
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def changes(then, now):
    """What of two provenances gives numbers other last digits, in words; "" for nothing, or nothing known."""
    then, now = _of_bits(then), _of_bits(now)
    changed = [name for name in now if name in then and then[name] != now[name]]
    return "; ".join(f"{name} was {str(then[name])[:60]}, is {now[name]}" for name in changed)


def _of_bits(made):
    """{name: value} of what bits depend on, as far as ``made``, read from a file, has it."""
    made = made if isinstance(made, dict) else {}
    blas = made.get("blas") if isinstance(made.get("blas"), dict) else {}
    known = {name: made[name] for name in ("device", "numpy") if name in made}
    return known | {f"BLAS {name}": value for name, value in blas.items()}
