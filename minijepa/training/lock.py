"""The lock on a run's folder: no other process trains in it, and no other folder in its place is written to."""

import contextlib
import os
import weakref

from minijepa.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Lock:
    """A lock on ``folder``. It ends with :meth:`release`, with this object, or with the process.

    Raises ConfigError if another process holds it. Without ``flock``, it locks nothing.
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
        """Raise ConfigError if the path now leads elsewhere: files are written by path, but the lock stays."""
        if self.descriptor is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.folder), os.fstat(self.descriptor)):
                return
        text = "was moved, removed or replaced by another folder: use --resume where the run is now"
        raise ConfigError(f"{self.folder} {text}")
