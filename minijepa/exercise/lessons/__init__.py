"""The exercises, in the order of docs/backward. Each module is a solved student's file, followed by its Lesson."""

from importlib import import_module

NAMES = "linear broadcasting rows residual gelu softmax cross_entropy layer_norm rms_norm attention".split()
LESSONS = {name: import_module(f"{__name__}.{name}").LESSON for name in NAMES}
