"""Where a run comes from, for its config.json: the program, the command, and the libraries that its bits depend on."""

import datetime
import functools
import platform
import shlex
import subprocess
import sys
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


@functools.cache
def commit(root=ROOT):
    """The commit of the sources, with -dirty where they differ from it; None where they are no checkout."""
    if not (root / ".git").exists():  # installed: a repository further up is somebody else's
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def changes(then, now):
    """What of two provenances gives numbers other last digits, in words; "" for nothing, or nothing known."""
    if not isinstance(then, dict):
        return ""
    changed = [name for name in ("device", "numpy", "blas") if name in then and then[name] != now[name]]
    return "; ".join(f"{name} was {_words(then[name])}, is {_words(now[name])}" for name in changed)


def _words(value):
    values = value.values() if isinstance(value, dict) else [value]
    return " ".join(str(v) for v in values)[:100]
