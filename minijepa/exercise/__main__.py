"""python -m minijepa.exercise [OP]: backward passes to write, with checks, hints, solutions and progress."""

import argparse
import json
import sys
import textwrap
from pathlib import Path

from minijepa.cli import docstring, exit_status, parse, suggestion, tell
from minijepa.errors import ConfigError
from minijepa.exercise.judge import judge
from minijepa.exercise.lessons import LESSONS
from minijepa.explain.operation import function_of, source_of
from minijepa.files import replaced

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
        raise ConfigError(f"unknown exercise {name!r}: {suggestion(name, LESSONS)}")
    lesson, path = LESSONS[name], Path(LESSONS[name].file)
    if hint:
        progress.add(name, hints=progress.of(name)["hints"] < len(lesson.hints))
        tell(hints(lesson, progress.of(name)["hints"]))
    elif solution:
        tell(way(lesson))
        progress.add(name, solutions=1)
    elif not path.exists():
        with replaced(path, "w", encoding="utf-8") as file:
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
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                raise ConfigError(f"{self.path} is damaged: delete it to start counting again") from None

    def of(self, name):
        return self.kept.get(name, self.zero)

    def add(self, name, **more):
        """Count, and write the file."""
        kept = {key: number + more.get(key, 0) for key, number in self.of(name).items()}
        self.kept[name] = kept
        with replaced(self.path, "w", encoding="utf-8") as file:
            file.write(json.dumps(self.kept, indent=2) + "\n")

    def told(self, end):
        """How many exercises are solved, and the next one, or ``end`` after the last."""
        left = [name for name in LESSONS if not self.of(name)["solved"]]
        done = f"{len(LESSONS) - len(left)} of {len(LESSONS)} solved."
        return f"{done} Next: {COMMAND} {left[0]}" if left else f"{done} {end}: well done."


def table(progress):
    """A line for each exercise, and the progress."""
    lines = [LINE.format("", "exercise", "to write", "state", "tries", "hints")]
    for i, (name, lesson) in enumerate(LESSONS.items(), 1):
        begun, kept = Path(lesson.file).exists(), progress.of(name)
        state = "solved" if kept["solved"] else "begun" if begun else "-"
        lines.append(LINE.format(i, name, lesson.asks, state, kept["attempts"] or "", kept["hints"] or "").rstrip())
    return "\n".join([*lines, "", progress.told("All of them")])


def numbered(hints):
    return "\n\n".join(textwrap.fill(f"{i}. {hint}", 80, subsequent_indent="   ") for i, hint in enumerate(hints, 1))


def hints(lesson, count):
    """The first ``count`` hints."""
    count = min(count, len(lesson.hints))  # the progress file may be of another version
    left = len(lesson.hints) - count
    more = f"{left} more: run this again" if left else f"That was all; the code: {COMMAND} {lesson.name} --solution"
    return f"{numbered(lesson.hints[:count])}\n\nHint {count} of {len(lesson.hints)}. {more}."


def way(lesson):
    """The derivation, then the code, and the package's own code if it has this operation."""
    parts = [docstring(lesson.op), "The derivation", numbered(lesson.hints), "The code", lesson.backward_source()]
    if lesson.twin:
        own = function_of(lesson.twin)
        parts += [f"The package's own, {own.__module__.replace('.', '/')}.py", source_of(own.backward)]
    return "\n\n".join([*parts, f"Every step, with its reason: {lesson.page}"])


def afterwards(lesson, right, progress):
    """What to do next, and the progress."""
    if not right:
        taken, count = progress.of(lesson.name)["hints"], len(lesson.hints)
        flag = "--hint" if taken < count else "--solution"
        return f"To go on: {COMMAND} {lesson.name} {flag}\n({taken} of {count} hints taken; the page: {lesson.page})"
    own = f"The package's own: python -m minijepa.explain {lesson.twin}\n" if lesson.twin else ""
    return own + progress.told("That was the last one")


if __name__ == "__main__":
    sys.exit(main())
