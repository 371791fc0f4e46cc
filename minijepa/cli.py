"""What the command lines share: printing, exit status and errors, and common arguments."""

import argparse
import contextlib
import difflib
import importlib.util
import inspect
import os
import signal
import sys
import time

from minijepa.errors import ConfigError, MinijepaError, TrainingError

VERSION = "0.1.0"  # minijepa.__version__, and the package's (pyproject.toml)

# Signals that end a program: Ctrl-C, kill, a closed terminal (not on Windows).
ENDINGS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def handled(handler, *numbers):
    """Handle these signals; returns {number: its previous handler}. Ignored ones (nohup) stay ignored."""
    previous = {}
    with contextlib.suppress(ValueError):  # outside of the main thread, signals can't be handled
        for number in numbers:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, handler)
    return previous


REQUIRED = {"numpy": "numpy", "PIL": "pillow", "tqdm": "tqdm"}  # modules, and their packages


def command():
    """The name of our command that is loading this package; "" if another program is."""
    folder, name = os.path.split(os.path.realpath(sys.argv[0]))
    if sys.argv[0] == "-m":  # while python -m NAME looks for its module, which may be another package's
        return "minijepa" if any(word.startswith(("minijepa", "-mminijepa")) for word in sys.orig_argv) else ""
    ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return name if folder == ours and name in ("train.py", "probe.py") else ""


def check_packages():
    """If a required package is missing: one line and exit status 2 for a command, otherwise ModuleNotFoundError."""
    for module, package in REQUIRED.items():
        if importlib.util.find_spec(module) is None:
            text = f"the package {package} is missing: pip install -r requirements.txt, best in a virtual environment"
            if command():
                tell(f"{command()}: {text} (see README.md)", sys.stderr)
                sys.exit(2)
            raise ModuleNotFoundError(text, name=module)


def say_interruption():
    """Let Ctrl-C print one line, not a traceback, while a command loads its modules, before :func:`exit_status`."""

    def end(number, frame):
        tell(f"{name}: interrupted", sys.stderr)
        raise SystemExit(128 + number)

    if name := command():
        handled(end, signal.SIGINT)


def path(text):
    """A path argument's ``type``. The shell does not expand the tilde of ``--data-dir=~/cifar``.

    An empty one, from a shell variable that is not set, is an error: it would mean the current folder.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return os.path.expanduser(text)


def docstring(thing):
    """The docstring that a command shows. Raises ConfigError under python -OO, which removes them."""
    text = inspect.getdoc(thing)
    if text is None:
        raise ConfigError("python -OO removes the docstrings that this command shows: run it without -OO")
    return text


def counted(number, noun):
    """``"1 step"``, ``"1,200 steps"``"""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def suggestion(name, known, otherwise=None):
    """What to say of an unknown name: "did you mean gelu?", or ``otherwise``, by default "there are ..."."""
    if close := difflib.get_close_matches(name, known, n=3):
        return f"did you mean {' or '.join(close)}?"
    return otherwise or f"there are {', '.join(known)}"


def add_machine(parser, data):
    """Common arguments: --device, --data-dir, --threads, --version. ``data``: the help of --data-dir."""
    parser.add_argument("--version", action="version", version=f"minijepa {VERSION}")
    device = dict(choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    parser.add_argument("--device", **device)
    parser.add_argument("--data-dir", type=path, default="data", metavar="DIR", help=f"{data} (default: data)")
    parser.add_argument("--threads", type=int, metavar="N", help="workers on a CPU (default: one for each core)")


class Interruptible:
    """Inside, a signal to end the program is stored in ``signal`` instead; a second one ends it.

    A second one within a second is ignored: when a terminal is closed, both its shell and the system send SIGHUP, and
    ``timeout`` signals the program and then its group.
    """

    def __enter__(self):
        self.signal = 0
        self.previous = handled(self._remember, *ENDINGS)
        return self

    def _remember(self, number, frame):
        if not self.signal:
            self.signal, self.at = number, time.monotonic()
        elif time.monotonic() - self.at > 1:
            raise SystemExit(128 + number)

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def exit_status(program, function):
    """Run ``function()`` for a command line; return its exit status, or that of its error, printed in one line.

    1 for training that went wrong, 2 for anything that the user can fix, 130 for SIGINT. SIGTERM and SIGHUP end the
    program with 143 and 129, by SystemExit: all unwind like exceptions, so that temporary files are removed.
    """

    def end(number, frame):
        raise SystemExit(128 + number)

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # started with it closed (2>&-), on which tqdm, for one, would fail
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        stream = getattr(sys, name)
        if mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "²" shows "?"
    previous = handled(end, *ENDINGS[1:]) | handled(signal.default_int_handler, signal.SIGINT)
    try:
        return function()
    except (MinijepaError, OSError, MemoryError, KeyboardInterrupt) as error:
        status, text = ended_by(error)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    tell(f"{program}: {text}", sys.stderr)
    return status


def ended_by(error):
    """(exit status, line) for an error that is reported in one line; None for any other."""
    if isinstance(error, MinijepaError):
        status, text = 1 if isinstance(error, TrainingError) else 2, error
    elif isinstance(error, OSError):
        status, text = 2, f"{error.filename}: {error.strerror}" if error.filename else error
    elif isinstance(error, MemoryError):
        status, text = 2, f"out of memory ({error}): lower batch_size, or the network's widths and depths"
    elif isinstance(error, KeyboardInterrupt):
        status, text = 130, "interrupted"
    else:
        return None
    return status, " ".join(str(text).splitlines())  # a file's name may contain a newline


def parse(parser, argv=None):
    """``parser.parse_args``, but refuse ``--flag=--``, which argparse turns into an empty list in Python 3.11."""
    argv = sys.argv[1:] if argv is None else argv
    for text in argv:
        if text.startswith("-") and text.endswith("=--"):
            parser.error(f"{text}: -- is not a value")
    return parser.parse_args(argv)


def tell(text, stream=None):
    """Print a line, by default to stdout. If the reader is gone (train.py | head), go on silently."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:  # BrokenPipeError, or a log on a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
