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
from minijepa.explain.operation import formula_and_code, function_of, input_names, live_check, page_of
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
    if args.html is not None and not (args.op or args.step):
        parser.error("--html takes an operation, or --step")
    return exit_status("explain", lambda: explain(args))


def explain(args):
    """Print what the command line asks for; the exit status."""
    if args.html is not None:
        text, passed = write_page(args.html, args.op)
    elif args.step:
        text, passed = told_step()
    else:
        text, passed = (table_of_ops(), True) if args.op is None else told_op(args.op)
    tell(text)
    return 0 if passed else 1


def told_op(op):
    """(text, passed): all about an operation, and whether its live check passed."""
    case, width, page = cases_of(op)[0], terminal_columns(), f"docs/backward/{page_of(op)}.md"
    more = fit_text(f"Read on: {page}, the derivation step by step, a mistake to try and an exercise.", width)
    check, passed = live_check(case, input_names(function_of(op), len(case.arrays)), width)
    return "\n".join([formula_and_code(op, width), "", more, check]), passed


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
