"""python -m minijepa.gradcheck [OP ...]: check the backward pass of every operation, or of those named."""

import argparse
import sys
import time

from minijepa.backend import resolve_device, to_device
from minijepa.cli import counted, exit_status, tell
from minijepa.errors import MinijepaError
from minijepa.gradcheck.cases import CASES, cases_of
from minijepa.gradcheck.check import TOLERANCE, compare_gradients

LINE = "{:<15} {:<26} {:>13}  {}"


def main(argv=None):
    """Print a table and the reports of failures. Returns the exit status: 0, 1 (a failure) or 2 (an unknown OP)."""
    parser = argparse.ArgumentParser(
        prog="python -m minijepa.gradcheck",
        description="Compare the gradients of backward passes with finite differences, in float64.",
        epilog=f"Operations: {', '.join(sorted(CASES))}. Exit status: 0 passed, 1 failed, 2 unknown operation.",
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help="operations to check (default: all of them)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto (default: cpu)")
    args = parser.parse_args(argv)
    return exit_status("gradcheck", lambda: check_all(args.ops or sorted(CASES), resolve_device(args.device)))


def check_all(names, device="cpu"):
    """Print the table and the reports for some operations. Returns the exit status."""
    todo = [(name, case) for name in names for case in cases_of(name)]
    start, largest, failures = time.perf_counter(), 0.0, []
    tell(LINE.format("op", "input", "largest error", "verdict"))
    for name, case in todo:
        error, report = check(case, device)
        tell(LINE.format(name, case.name, "-" if error is None else f"{error:.1e}", "FAILED" if report else "passed"))
        largest = max(largest, error or 0.0)
        if report:
            failures.append(f"{name}, {case.name}: {report}")

    for failure in failures:
        tell(f"\n{failure}")
    tell(
        f"\n{counted(len(todo), 'check')} in {time.perf_counter() - start:.1f} s, largest error {largest:.1e}, "
        f"tolerance {TOLERANCE:.0e}: {f'{len(failures)} FAILED' if failures else 'all passed'}"
    )
    return 1 if failures else 0


def check(case, device="cpu"):
    """(largest error, report) of a case. Report None: it passed. Error None: nothing could be compared."""
    try:
        comparisons = compare_gradients(case.fn, *(to_device(a, device) for a in case.arrays))
    except MinijepaError as error:  # a backward of the wrong shape, an input written into
        return None, str(error)
    worst = max(comparisons, key=lambda comparison: comparison.error)
    return worst.error, worst.report(TOLERANCE) if worst.error > TOLERANCE else None


if __name__ == "__main__":
    sys.exit(main())
