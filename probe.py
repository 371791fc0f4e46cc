#!/usr/bin/env python3
"""Probe the features of a run: python probe.py runs/NAME [--split val|test] [--encoder target|context]"""

import argparse
import sys

from minijepa import backend  # first: it holds BLAS to one thread before NumPy is loaded
from minijepa.errors import exit_status, parse
from minijepa.evaluation import evaluate


def parser():
    p = argparse.ArgumentParser(
        prog="probe.py",
        description="Linear probe and kNN of a run's frozen encoder, beside an untrained encoder and raw pixels.",
    )
    p.add_argument("run", help="a run folder, or a checkpoint file")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    p.add_argument("--data-dir", default="data", metavar="DIR", help="where CIFAR-10 is (default: data)")
    p.add_argument(
        "--split", choices=("val", "test"), default="test",
        help="test: the final figure; val: images that the run held back (default: test)",
    )  # fmt: skip
    p.add_argument("--encoder", choices=("target", "context"), default="target", help="default: target")
    p.add_argument("--threads", type=int, metavar="N", help="worker threads on a CPU (default: all cores)")
    return p


def main(argv=None):
    args = parse(parser(), argv)

    def run():
        device = backend.resolve_device(args.device)
        evaluate(args.run, args.data_dir, device, args.threads, args.split, args.encoder)
        return 0

    return exit_status("probe.py", run)


if __name__ == "__main__":
    sys.exit(main())
