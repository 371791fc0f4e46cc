"""Files and folders that are whole or not there: what is written gets its name once all of it is on the disk."""

import contextlib
import errno
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
    """Open a file to write; ``path`` becomes it, whole, when all is written and on the disk, or stays what it was.

    ``previous``: a name that what stood at ``path`` gets first. At every moment both names are whole files. Raises
    CheckpointError in one line.
    """
    path = Path(path)
    try:
        folder = os.stat(path.parent)
        with _spare(path) as temporary:
            with open(temporary, mode.replace("w", "x"), **options) as file:  # "x" follows no link that lies there
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
        raise CheckpointError(f"can't write {path}: {reason}; what stood there is untouched") from None


def _keep(path, name):
    """Have the file ``path`` under ``name`` too, in one step: as a hard link, or a copy where the disk has no links."""
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
    """A name beside ``path`` that nobody can foresee, for a file on its way there. Nothing stays under it."""
    spare = Path(f"{path}.{secrets.token_hex(4)}.tmp")
    try:
        yield spare
    finally:
        with contextlib.suppress(OSError):
            spare.unlink(missing_ok=True)  # whatever happened, a second signal included


def remove_spares(folder):
    """Remove what killed processes have left of files that were on their way into ``folder``."""
    for spare in Path(folder).glob(f"*.{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):
            spare.unlink()


def open_plain(path, mode="r", **options):
    """``open`` to read, for plain files alone: a named pipe, say, would let its reader wait for ever. OSError."""

    def opener(name, flags):
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a plain file", str(name))
        return descriptor

    return open(path, mode, opener=opener, **options)


@contextlib.contextmanager
def new_folder(path):
    """A folder to fill, inside a temporary one beside ``path``; it gets that name, in one step, when all is in it.

    Whatever fails leaves nothing, not even the parents that were made for it; SIGKILL leaves the temporary folder,
    which is hidden. Raises OSError, FileExistsError if ``path`` is there already and not empty.
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
    """``path`` as a word of a command that a reader can copy, also if it has spaces or begins with a hyphen."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def sync(path):
    """Have a file's content, or a folder's names, on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
