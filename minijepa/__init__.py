"""minijepa: I-JEPA from scratch on NumPy and CuPy, with its own tape-based autograd."""

from minijepa.cli import VERSION as __version__
from minijepa.cli import check_packages, say_interruption

check_packages()
say_interruption()

from minijepa import backend  # noqa: F401, I001  (first: it holds BLAS to one thread before NumPy is loaded)
from minijepa import ops
from minijepa.autograd import Function, Parameter, Tape, Tensor, no_tape
from minijepa.training.checkpoint import load
from minijepa.config import Config
from minijepa.data import MultiBlockMasker, load_cifar10, normalise
from minijepa.gradcheck import gradcheck
from minijepa.models import IJEPA
from minijepa.gradcheck.watch import WatchingTape

__all__ = [
    "IJEPA", "Config", "Function", "MultiBlockMasker", "Parameter", "Tape", "Tensor", "WatchingTape", "__version__",
    "gradcheck", "load", "load_cifar10", "no_tape", "normalise", "ops",
]  # fmt: skip
