"""The exercises, in the order of docs/backward. Each module is a solved student's file, followed by its Lesson."""

from minijepa.exercise.lessons import (
    attention,
    broadcasting,
    cross_entropy,
    gelu,
    layer_norm,
    linear,
    residual,
    rms_norm,
    rows,
    softmax,
)

LESSONS = {
    module.LESSON.name: module.LESSON
    for module in (
        linear, broadcasting, rows, residual, gelu, softmax, cross_entropy, layer_norm, rms_norm, attention,
    )
}  # fmt: skip
