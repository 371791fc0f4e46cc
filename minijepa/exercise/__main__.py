"""python -m minijepa.exercise [OP]: backward passes to write, with checks, hints, solutions and progress."""

import argparse
import difflib
import inspect
import json
import sys
import textwrap
from pathlib import Path

from minijepa.autograd import Tape, Tensor
from minijepa.cli import docstring, exit_status, parse, tell
from minijepa.errors import ConfigError
from minijepa.exercise.judge import judge
from minijepa.exercise.lessons import LESSONS
from minijepa.files import replaced
from minijepa.gradcheck.cases import cases_of

COMMAND = "python -m minijepa.exercise"
LINE = "{:>2} {:<14}{:<43}{:<8}{:>5} {:>5}"


def main(argv=None):
    """List the exercises, or serve one. Returns the exit status: 0 (right), 1 (not yet) or 2 (bad usage)."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Write backward passes yourself. Without OP: the list of exercises and your progress. With OP: "
        "write a stub to the current folder or, if there is one, check your attempt.",
        epilog=f"Exercises: {', '.join(LESSONS)}. Exit status: 0 right, 1 not yet, 2 bad usage.",
    )
    parser.add_argument("op", nargs="?", metavar="OP", help="the exercise")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--hint", action="store_true", help="the next step of the derivation")
    what.add_argument("--solution", action="store_true", help="the whole derivation, and the code")
    args = parse(parser, argv)
    return exit_status("exercise", lambda: serve(args.op, args.hint, args.solution))


def serve(name, hint=False, solution=False):
    """Do what the command line asks for; the exit status."""
    progress = Progress()
    if name is None:
        if hint or solution:
            raise ConfigError(f"name the exercise: {COMMAND} OP --{'hint' if hint else 'solution'}")
        tell(table(progress))
        return 0
    if name not in LESSONS:
        close = difflib.get_close_matches(name, LESSONS, n=3)
        raise ConfigError(
            f"unknown exercise {name!r}: "
            + (f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(LESSONS)}")
        )
    lesson, path = LESSONS[name], Path(LESSONS[name].file)
    if hint:
        progress.add(name, hints=progress.of(name)["hints"] < len(lesson.hints))
        tell(hints(lesson, progress.of(name)["hints"]))
    elif solution:
        tell(way(lesson))
        progress.add(name, solutions=1)
    elif not path.exists():
        with open(path, "x", encoding="utf-8") as file:  # x: never overwrites a file
            file.write(lesson.stub())
        tell(
            f"{path} is written. Its forward is given; write its backward:\n{lesson.asks}\n\nThen run\n"
            f"  {COMMAND} {name}\nagain to check it. With --hint: the derivation, step by step.\n"
            f"The page: {lesson.page}"
        )
    else:
        right, text = judge(lesson, path)
        progress.add(name, attempts=1, solved=right)
        tell(f"{text}\n\n{afterwards(lesson, right, progress)}")
        return 0 if right else 1
    return 0


class Progress:
    """Progress, kept in a file next to the stubs: {exercise: {"attempts", "hints", "solutions", "solved"}}."""

    path = Path("exercise_progress.json")
    zero = {"attempts": 0, "hints": 0, "solutions": 0, "solved": 0}

    def __init__(self):
        self.kept = {}
        if self.path.exists():
            try:
                kept = json.loads(self.path.read_bytes())
                self.kept = {name: {key: int(kept[name][key]) for key in self.zero} for name in kept}
            except (ValueError, TypeError, KeyError):
                raise ConfigError(f"{self.path} is damaged: delete it to start counting again") from None

    def of(self, name):
        return self.kept.get(name, self.zero)

    def add(self, name, **more):
        """Count, and write the file."""
        kept = {key: number + more.get(key, 0) for key, number in self.of(name).items()}
        self.kept[name] = kept
        with replaced(self.path, "w", encoding="utf-8") as file:
            file.write(json.dumps(self.kept, indent=2) + "\n")

    def solved(self):
        return [name for name in LESSONS if self.of(name)["solved"]]

    def next(self):
        """The first exercise that is not solved, or None."""
        return next((name for name in LESSONS if not self.of(name)["solved"]), None)


def table(progress):
    """A line for each exercise, and the progress."""
    lines = [LINE.format("", "exercise", "to write", "state", "tries", "hints")]
    for i, (name, lesson) in enumerate(LESSONS.items(), 1):
        begun, kept = Path(lesson.file).exists(), progress.of(name)
        state = "solved" if kept["solved"] else "begun" if begun else "-"
        lines.append(LINE.format(i, name, lesson.asks, state, kept["attempts"] or "", kept["hints"] or "").rstrip())
    done = f"{len(progress.solved())} of {len(LESSONS)} solved."
    following = progress.next()
    lines += ["", f"{done} Next: {COMMAND} {following}" if following else f"{done} All of them: well done."]
    return "\n".join(lines)


def hints(lesson, count):
    """The first ``count`` hints."""
    lines = []
    for i, text in enumerate(lesson.hints[:count], 1):
        lines += [*textwrap.wrap(f"{i}. {text}", 80, subsequent_indent="   "), ""]
    left = len(lesson.hints) - count
    more = f"{left} more: run this again" if left else f"That was all; the code: {COMMAND} {lesson.name} --solution"
    return "\n".join([*lines, f"Hint {count} of {len(lesson.hints)}. {more}."])


def way(lesson):
    """The derivation, then the code, and the package's own code if it has this operation."""
    lines = [docstring(lesson.op), "", "The derivation"]
    lines += [line for i, hint in enumerate(lesson.hints, 1) for line in ("", *textwrap.wrap(
        f"{i}. {hint}", 80, subsequent_indent="   "))]  # fmt: skip
    lines += ["", "The code", "", lesson.backward_source().rstrip()]
    if lesson.twin:
        own = twin(lesson)
        lines += ["", f"The package's own, {own.__module__.replace('.', '/')}.py", ""]
        lines.append(textwrap.dedent(inspect.getsource(own.backward)).rstrip())
    lines += ["", f"Every step, with its reason: {lesson.page}"]
    return "\n".join(lines)


def twin(lesson):
    """The package's own Function for the lesson."""
    example = cases_of(lesson.twin)[0]
    with Tape() as tape:
        example.fn(*(Tensor(array, requires_grad=True) for array in example.arrays))
    return tape.entries[-1].op


def afterwards(lesson, right, progress):
    """What to do next, and the progress."""
    if not right:
        taken, count = progress.of(lesson.name)["hints"], len(lesson.hints)
        flag = "--hint" if taken < count else "--solution"
        return f"To go on: {COMMAND} {lesson.name} {flag}\n({taken} of {count} hints taken; the page: {lesson.page})"
    following = progress.next()
    done = f"{len(progress.solved())} of {len(LESSONS)} solved."
    if lesson.twin:
        done = f"The package's own: python -m minijepa.explain {lesson.twin}\n{done}"
    return f"{done} Next: {COMMAND} {following}" if following else f"{done} That was the last one: well done."


if __name__ == "__main__":
    sys.exit(main())
