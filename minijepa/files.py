"""Files and folders that are whole or not there: what is written gets its name once all of it is on the disk."""

import contextlib
import os
import shlex
import tempfile
from pathlib import Path

from minijepa.errors import CheckpointError


@contextlib.contextmanager
def replaced(path, mode="wb", previous=None, **options):
    """Open a file to write; ``path`` becomes it, whole, when all is written and on the disk, or stays what it was.

    ``previous``: the name that what stood at ``path`` then gets. Raises CheckpointError in one line.
    """
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and os.path.exists(path):
            _replace_keeping(temporary, path, previous)
        else:
            os.replace(temporary, path)
        sync(temporary.parent)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"can't write {path}: {reason}; what stood there is untouched") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # whatever happened, a second signal included


def _replace_keeping(temporary, path, previous):
    """``path`` becomes the file ``temporary``, ``previous`` what ``path`` was. At every moment both names are files,
    and two different ones.
    """
    spare = Path(f"{previous}.tmp")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links: there, for a moment, only ``previous`` is left
        os.replace(path, previous)
        os.replace(temporary, path)
        return
    os.replace(temporary, path)
    os.replace(spare, previous)


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
            yield folder
            for path_inside in (*folder.iterdir(), folder):
                sync(path_inside)
            try:
                folder.rename(path)
            except OSError as error:
                raise FileExistsError(error.errno, "it exists", str(path)) if path.exists() else error from None
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
