"""timm, for the tests that exchange weights with it."""

import sys

import pytest


def import_timm():
    """timm and torch; skips the test where they are not installed.

    timm imports torchvision, whose operators are compiled for one build of PyTorch. Beside another one its import stops
    at two operators that nobody here calls; naming them is enough for the rest of it.
    """
    torch = pytest.importorskip("torch")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        from torch import library

        import_timm.named = library.Library("torchvision", "DEF")  # which takes its operators along when it goes
        for name in ("nms", "qnms"):
            import_timm.named.define(f"{name}(Tensor boxes, Tensor scores, float overlap) -> Tensor")
    except ImportError:
        pass
    return pytest.importorskip("timm"), torch
