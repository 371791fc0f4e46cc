"""The errors that a user can meet.

Every class derives from :class:`MinijepaError`, whose message is one clear line: what is wrong, where, and what to do.
The command lines print that line and exit with status 2 (1 if training itself went wrong): see ``exit_status``. A
traceback therefore always means a bug of ours.
"""

import contextlib
import os
import signal
import sys


class MinijepaError(Exception):
    """Base of all errors below: catch this one to catch them all."""


class ConfigError(MinijepaError, ValueError):
    """A setting is unknown, has a bad value, or contradicts another setting."""


class DataError(MinijepaError):
    """A data file is missing, truncated or not what it claims to be."""


class CheckpointError(MinijepaError):
    """A checkpoint can't be read, or does not fit the model that it is loaded into."""


class DeviceError(MinijepaError):
    """The requested device can't be used, or arrays of different devices were mixed."""


class TrainingError(MinijepaError):
    """Training went wrong: a loss that is not finite, a parameter that receives no gradient."""


class TapeError(MinijepaError, RuntimeError):
    """The tape was used in a way that has no meaning: a second backward, a loss that is not on it, nesting."""


class ShapeError(MinijepaError, ValueError):
    """An operation was given, or its backward returned, an array of the wrong shape."""


class DtypeError(MinijepaError, TypeError):
    """An operation was given, or returned, an array of the wrong dtype."""


class GradcheckError(MinijepaError, AssertionError):
    """An analytic gradient differs from the finite-difference one."""


def exit_status(program, function):
    """Run ``function()`` for a command line: its exit status, or that of the error that ended it, told in one line.

    1 for training that went wrong, 2 for anything that the user can mend, 130 for SIGINT. SIGTERM ends the program with
    143, by SystemExit: both unwind like an exception, so that temporary files go.
    """

    def end(number, frame):
        raise SystemExit(128 + number)

    previous = None
    with contextlib.suppress(ValueError):  # not the main thread: then signals are not ours to handle
        previous = signal.signal(signal.SIGTERM, end)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with it closed (2>&-): tqdm, for one, would stumble
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "²" shows "?"
    try:
        return function()
    except MinijepaError as error:
        status, text = 1 if isinstance(error, TrainingError) else 2, error
    except OSError as error:
        status, text = 2, f"{error.filename}: {error.strerror}" if error.filename else error
    except MemoryError as error:
        status, text = 2, f"out of memory ({error}): lower batch_size, or the network's widths and depths"
    except KeyboardInterrupt:
        status, text = 130, "interrupted"
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
    tell(f"{program}: {' '.join(str(text).splitlines())}", sys.stderr)  # a file's name may hold a line's end
    return status


def parse(parser, argv=None):
    """``parser.parse_args``, but ``--flag=--`` is refused: of that, argparse makes an empty list in Python 3.11."""
    argv = sys.argv[1:] if argv is None else argv
    for text in argv:
        if text.startswith("-") and text.endswith("=--"):
            parser.error(f"{text}: -- is no value")
    return parser.parse_args(argv)


def tell(text, stream=None):
    """Print a line, by default to stdout. If nobody listens any more (train.py | head), go on in silence."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:  # BrokenPipeError, or a log on a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
