"""What the command lines share: how they print, end and fail, and the choices that several of them take."""

import contextlib
import importlib.util
import inspect
import os
import signal
import sys
import time

from minijepa.errors import ConfigError, MinijepaError, TrainingError

VERSION = "0.1.0"  # minijepa.__version__, and the package's (pyproject.toml)

# What ends a program: Ctrl-C, kill, a terminal that was closed (which Windows doesn't tell).
ENDINGS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def handled(handler, *numbers):
    """Have these signals handled; {number: its handler before}. Those that are ignored, as by nohup, stay so."""
    previous = {}
    with contextlib.suppress(ValueError):  # not the main thread: then signals are not ours to handle
        for number in numbers:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, handler)
    return previous


REQUIRED = {"numpy": "numpy", "PIL": "pillow", "tqdm": "tqdm"}  # modules, and the packages that bring them


def command():
    """The name of the command of ours that is loading this package; "" where another program does."""
    folder, name = os.path.split(os.path.realpath(sys.argv[0]))
    if sys.argv[0] == "-m":  # while python -m minijepa.NAME looks for its module
        return "minijepa"
    ours = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return name if folder == ours and name in ("train.py", "probe.py") else ""


def check_packages():
    """Where a required package is missing: one line and exit status 2 for a command, otherwise ModuleNotFoundError."""
    for module, package in REQUIRED.items():
        if importlib.util.find_spec(module) is None:
            text = f"the package {package} is missing: pip install -r requirements.txt, best in a virtual environment"
            if command():
                tell(f"{command()}: {text} (see README.md)", sys.stderr)
                sys.exit(2)
            raise ModuleNotFoundError(text, name=module)


def say_interruption():
    """While a command loads its modules, and until :func:`exit_status`, let Ctrl-C be one line and no traceback."""

    def end(number, frame):
        tell(f"{name}: interrupted", sys.stderr)
        raise SystemExit(128 + number)

    if name := command():
        handled(end, signal.SIGINT)


def path(text):
    """A path of the command line, as an argument's ``type``. ``--data-dir=~/cifar``: no shell expands that tilde."""
    return os.path.expanduser(text)


def docstring(thing):
    """The docstring that a command shows. Raises ConfigError where Python was told to leave them out."""
    text = inspect.getdoc(thing)
    if text is None:
        raise ConfigError("python -OO leaves out the docstrings, which this command shows: run it without -OO")
    return text


def counted(number, noun):
    """``"1 step"``, ``"1,200 steps"``"""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def add_machine(parser, data):
    """What train.py and probe.py both take: --device, --data-dir, --threads, --version. ``data``: the second's help."""
    parser.add_argument("--version", action="version", version=f"minijepa {VERSION}")
    device = dict(choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    parser.add_argument("--device", **device)
    parser.add_argument("--data-dir", type=path, default="data", metavar="DIR", help=f"{data} (default: data)")
    parser.add_argument("--threads", type=int, metavar="N", help="worker threads on a CPU (default: all cores)")


class Interruptible:
    """While inside, signals that end a program are remembered in ``signal`` instead; a later one does end it.

    Not one within a second: a shell whose terminal was closed sends SIGHUP, and so does the system as that shell ends;
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
    """Run ``function()`` for a command line: its exit status, or that of the error that ended it, told in one line.

    1 for training that went wrong, 2 for anything that the user can mend, 130 for SIGINT. SIGTERM and SIGHUP end the
    program with 143 and 129, by SystemExit: all unwind like an exception, so that temporary files go.
    """

    def end(number, frame):
        raise SystemExit(128 + number)

    previous = handled(end, *ENDINGS[1:]) | handled(signal.default_int_handler, signal.SIGINT)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with it closed (2>&-): tqdm, for one, would stumble
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "²" shows "?"
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
    """(exit status, line) for an error that is told in one line; None for any other."""
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
    return status, " ".join(str(text).splitlines())  # a file's name may hold a line's end


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
