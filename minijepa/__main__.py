"""python -m minijepa: what there is to run."""

import argparse
import sys

from minijepa.cli import VERSION, exit_status, tell

PROGRAMS = {
    "train.py": "pretrain a network (--help has the presets)",
    "probe.py RUN": "how good its features are, and pictures of them",
}
MODULES = {
    "gradcheck [OP ...]": "backward passes against finite differences",
    "explain [OP | --step]": "an operation's derivation and code, or a step; --html FILE: a page",
    "exercise [OP]": "backward passes to write yourself, with a judge",
    "training.curves RUN [RUN ...]": "the curves of runs, one over the other",
    "export RUN FILE": "the encoder alone, for timm and others",
}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m minijepa", description="List the commands of minijepa.")
    parser.add_argument("--version", action="version", version=f"minijepa {VERSION}")
    parser.parse_args(argv)
    return exit_status("minijepa", show)


def show():
    tell(f"minijepa {VERSION}: I-JEPA from scratch in NumPy and CuPy")
    programs = {f"python {name}": text for name, text in PROGRAMS.items()}
    modules = {f"python -m minijepa.{name}": text for name, text in MODULES.items()}
    for title, commands in (("in the repository:", programs), ("anywhere:", modules)):
        tell(f"\n{title}")
        for command, text in commands.items():
            tell(f"    {command}\n        {text}")
    tell("\n--help after any of them tells more.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
