"""All CUDA code (README.md in this folder). Importing it gives the hot operations their fused twins.

``backend`` imports it when an array is first moved to a GPU, or a precision set, so a run on a CPU never does.
"""

from minijepa.kernels import twins  # noqa: F401
