"""The lock on a run's folder: nobody else trains in it, and nothing is written into another one in its place."""

import os
import weakref

from minijepa.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Lock:
    """A lock on ``folder``. It ends with :meth:`release`, with this object, or with the process.

    Raises ConfigError if another process holds it. Where there is no ``flock``, nobody is kept out.
    """

    def __init__(self, folder):
        self.folder, self.descriptor, self.release = folder, None, lambda: None
        if fcntl is None:
            return
        self.descriptor = os.open(folder, os.O_RDONLY)
        self.release = weakref.finalize(self, os.close, self.descriptor)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ConfigError(f"another process is training in {folder}: wait for it, or stop it") from None
        except OSError:
            pass  # a file system without locks

    def check(self):
        """Raise ConfigError if the path leads elsewhere by now: files are written by their path, the lock stays."""
        if self.descriptor is None:
            return
        try:
            here = os.path.samestat(os.stat(self.folder), os.fstat(self.descriptor))
        except OSError:
            here = False
        if not here:
            raise ConfigError(
                f"{self.folder} was moved, removed or replaced by another folder, so nothing more is written there: go "
                "on with --resume where the run is now"
            )
