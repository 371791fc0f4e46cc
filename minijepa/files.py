"""Files and folders that are complete or absent: each gets its name only once all of it is on disk."""

import contextlib
import errno
import json
import os
import secrets
import shlex
import shutil
import stat
import tempfile
from pathlib import Path

from minijepa.errors import CheckpointError


@contextlib.contextmanager
def replaced(path, mode="wb", previous=None, **options):
    """Open a file to write; it replaces ``path`` once all of it is on disk, or not at all.

    ``previous``: a name that the old file at ``path`` gets first; at every moment both names are complete files. Raises
    CheckpointError in one line.
    """
    path = Path(path)
    try:
        folder = os.stat(path.parent)
        with _spare(path) as temporary:
            with open(temporary, mode.replace("w", "x"), **options) as file:  # "x" refuses an existing link
                yield file
                file.flush()
                os.fsync(file.fileno())
            if not os.path.samestat(folder, os.stat(path.parent)):
                raise OSError(errno.ENOENT, "its folder was moved or replaced")
            if previous is not None and path.exists():
                _keep(path, previous)
            os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"can't write {path}: {reason}; what was there is untouched") from None


def _keep(path, name):
    """Give the file ``path`` the name ``name`` too, in one step: a hard link, or a copy if the disk has no links."""
    with _spare(name) as spare:
        try:
            os.link(path, spare)
        except OSError:
            with open_plain(path, "rb") as source, open(spare, "xb") as target:
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())
        os.replace(spare, name)


@contextlib.contextmanager
def _spare(path):
    """An unpredictable temporary name next to ``path``, removed at the end."""
    spare = Path(f"{path}.{secrets.token_hex(4)}.tmp")
    try:
        yield spare
    finally:
        with contextlib.suppress(OSError):
            spare.unlink(missing_ok=True)  # whatever happened, a second signal included


def remove_spares(folder):
    """Remove the temporary files that killed processes left in ``folder``."""
    for spare in Path(folder).glob(f"*.{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):
            spare.unlink()


def open_plain(path, mode="r", **options):
    """``open`` for reading plain files only: a named pipe would block for ever. Raises OSError."""

    def opener(name, flags):
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a plain file", str(name))
        return descriptor

    return open(path, mode, opener=opener, **options)


def read_json(path):
    """The dict in a JSON file; {} if the file is missing, damaged or holds something else."""
    with contextlib.suppress(OSError, ValueError, RecursionError), open_plain(path, encoding="utf-8") as file:
        found = json.load(file)
        return found if isinstance(found, dict) else {}
    return {}


@contextlib.contextmanager
def new_folder(path):
    """A folder to fill, inside a temporary one next to ``path``; once filled, it is renamed to ``path`` in one step.

    A failure leaves nothing, not even the parents made for it; SIGKILL leaves the temporary folder, which is hidden.
    Raises OSError; FileExistsError if ``path`` exists and is not empty.
    """
    path = Path(path)
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as scratch:
            folder = Path(scratch, path.name)
            folder.mkdir()
            try:
                yield folder
            except CheckpointError as error:
                raise CheckpointError(str(error).replace(str(folder), str(path))) from None
            for path_inside in (*folder.iterdir(), folder):
                sync(path_inside)
            try:
                folder.rename(path)
            except OSError as error:
                if path.exists():
                    raise FileExistsError(error.errno, error.strerror, str(path)) from None
                raise
        sync(path.parent)
    except BaseException:
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: others use it too
                parent.rmdir()
        raise


def shell_word(path):
    """``path`` quoted for a command that a reader can copy, even with spaces or a leading hyphen."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def sync(path):
    """Flush a file's content, or a folder's names, to disk, if the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
