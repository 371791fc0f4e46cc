"""python -m minijepa.training.curves RUN [RUN ...]: the curves of several runs in one picture."""

import argparse
import sys
from pathlib import Path

from minijepa.cli import VERSION, exit_status, parse, path, tell
from minijepa.errors import ConfigError
from minijepa.pictures import curves_picture
from minijepa.pictures.canvas import LABEL, shortened
from minijepa.pictures.curves import COLOURS
from minijepa.training.metrics import CAPTION, LAST, curves_of, read_metrics

OUT = "curves-compared.png"


def parser():
    p = argparse.ArgumentParser(
        prog="python -m minijepa.training.curves",
        description="Draw the curves of run folders over each other, into one PNG.",
    )
    p.add_argument("--version", action="version", version=f"minijepa {VERSION}")
    p.add_argument("runs", nargs="+", type=path, metavar="RUN", help=f"a run folder; at most {len(COLOURS)} of them")
    p.add_argument("--out", type=path, default=OUT, metavar="FILE", help=f"default: {OUT}")
    return p


def main(argv=None):
    args = parse(parser(), argv)
    return exit_status("curves", lambda: draw(args))


def draw(args):
    if len(args.runs) > len(COLOURS):
        raise ConfigError(f"{len(args.runs)} runs: at most {len(COLOURS)} can be told apart")
    folders = [Path(run) for run in args.runs]
    runs = [curves_of(folder, read_metrics(folder), shortened(str(folder), 900, LABEL)) for folder in folders]
    for folder, run in zip(folders, runs):
        if not len(run.x):
            raise ConfigError(f"{folder} has not finished an epoch yet: there is nothing to draw")
    curves_picture(runs, args.out, "Training", CAPTION.replace(LAST, ""))
    tell(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
