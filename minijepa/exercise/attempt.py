"""A student's file: reading it, and reporting its errors in one line with their line number."""

import ast
import contextlib
import inspect
import io
import sys
import traceback

from minijepa.autograd import Function
from minijepa.errors import MinijepaError

WRITES = (
    "this writes to dy, to an array that forward was given, or to a view that NumPy protects (np.broadcast_to, "
    "np.diagonal). Make a new array (a = a * b, not a *= b)"
)


class NotYet(Exception):
    """What an attempt lacks, as text for the student."""


def load(lesson, path, printed):
    """The operation that the student's file defines. What it prints goes into ``printed``: {line: the first time}."""

    def keep(*values, file=None, **options):
        if file is not None:
            return print(*values, file=file, **options)
        print(*values, file=(text := io.StringIO()), **options)
        printed.setdefault(sys._getframe(1).f_lineno, text.getvalue().rstrip())

    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes, in older Pythons
        line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        raise NotYet(f"{path}{line}: not Python: {getattr(error, 'msg', error)}") from None
    namespace = {"__name__": path.stem, "__file__": str(path), "print": keep}
    with told_with_line(path):
        exec(code, namespace)
    name = lesson.op.__name__
    op = namespace.get(name)
    if not (isinstance(op, type) and issubclass(op, Function) and {"forward", "backward"} <= vars(op).keys()):
        raise NotYet(f"{path}: it has no class {name}(Function) with a forward and a backward")
    for part in ("forward", "backward"):
        _check_first_line(getattr(op, part), getattr(lesson.op, part), f"{path}: {part}")
    return op


def _check_first_line(function, given, where):
    """Raises NotYet unless ``function`` can be called as ``given`` is."""
    parameters = inspect.signature(given).parameters.values()
    options = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(function).bind(*[None] * (len(parameters) - len(options)), **options)
    except TypeError:
        raise NotYet(f"{where} takes {inspect.signature(given)}: restore its first line") from None


@contextlib.contextmanager
def told_with_line(path):
    """Errors in the student's code become NotYet; errors that did not pass through it are left alone."""
    try:
        yield
    except NotYet:
        raise
    except (Exception, SystemExit) as error:
        line, cause = None, error
        while cause is not None:  # the engine wraps NumPy's errors
            frames = traceback.extract_tb(cause.__traceback__)
            line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), line)
            cause = cause.__cause__
        if line is None and not isinstance(error, MinijepaError):
            raise
        text = str(error) if isinstance(error, MinijepaError) else f"{type(error).__name__}: {error}"
        text = WRITES if "read-only" in text else text
        raise NotYet(f"{path}{'' if line is None else f', line {line}'}: {text}") from None


def place(path, function):
    """``"FILE, line N"``, of a function's last return."""
    nodes = [n for n in ast.walk(ast.parse(path.read_bytes())) if getattr(n, "name", None) == function]
    lines = [n.lineno for node in nodes for n in ast.walk(node) if isinstance(n, (ast.Return, ast.FunctionDef))]
    return f"{path}, line {max(lines)}" if lines else str(path)
