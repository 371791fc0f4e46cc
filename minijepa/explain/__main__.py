"""python -m minijepa.explain OP: an operation's formula, its derivation, its code, and a live check of its gradient.

``--step`` narrates a whole training step; without OP, the operations are listed. ``--html FILE`` writes a page instead,
on which the reader walks the tape of a tiny network forward and backward.
"""

import argparse
import sys
import textwrap

from minijepa import ops
from minijepa.cli import docstring, exit_status, parse, path, tell
from minijepa.explain.columns import fit_text, terminal_columns
from minijepa.explain.operation import formula_and_code, input_names, live_check, page_of
from minijepa.explain.page import write_page
from minijepa.explain.step import told_step
from minijepa.gradcheck.cases import CASES, cases_of


def main(argv=None):
    """Explain one operation or a training step, or list the operations.

    Returns the exit status: 0, 1 (the check fails) or 2 (unknown OP).
    """
    parser = argparse.ArgumentParser(
        prog="python -m minijepa.explain",
        description="An operation's formula, the derivation of its backward pass, its code, and a live gradient check.",
        epilog="Exit status: 0 passed, 1 the check failed, 2 unknown operation.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("op", nargs="?", metavar="OP", help="the operation to explain (default: list them all)")
    what.add_argument("--step", action="store_true", help="narrate one training step of a tiny I-JEPA")
    walked = "write a page for a browser that walks the tape; replaces only such a page"
    parser.add_argument("--html", type=path, metavar="FILE", help=walked)
    args = parse(parser, argv)
    if args.html is None:
        return exit_status("explain", tell_step if args.step else lambda: explain(args.op))
    if not (args.op or args.step):
        parser.error("--html takes an operation, or --step")
    return exit_status("explain", lambda: tell_page(args.html, args.op))


def tell_page(file, op):
    """Write the page of an operation, or of a training step (None); the exit status."""
    text, passed = write_page(file, op)
    tell(text)
    return 0 if passed else 1


def tell_step():
    """Print a training step; the exit status."""
    text, passed = told_step()
    tell(text)
    return 0 if passed else 1


def explain(op):
    """Print all about an operation; the exit status."""
    if op is None:
        tell(table_of_ops())
        return 0
    case = cases_of(op)[0]
    width = terminal_columns()
    tell(formula_and_code(op, width))
    page = f"docs/backward/{page_of(op)}.md"
    tell("\n" + fit_text(f"Read on: {page} has every step of the derivation, a mistake to try and an exercise.", width))
    check, passed = live_check(case, input_names(op), width)
    tell(check)
    return 0 if passed else 1


def table_of_ops():
    """A line for each operation: its name and the first line of its docstring."""
    room = terminal_columns() - 16
    lines = [f"{'op':<16}what it computes"]
    for op in sorted(CASES):
        what = docstring(getattr(ops, op)).splitlines()[0]
        lines.append(f"{op:<16}{textwrap.shorten(what, room, placeholder=' …')}")
    return "\n".join([
        *lines, "",
        "python -m minijepa.explain OP shows derivation, code and a live check; --step",
        "narrates a training step; with --html FILE, either becomes a page for a browser.",
        "docs/backward/ derives each operation step by step; docs/own_op.md shows how to",
        "add one. python -m minijepa.exercise lets you write backward passes yourself and",
        "checks them.",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
