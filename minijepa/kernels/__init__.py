"""All CUDA code (README.md in this folder). Importing it gives the hot operations their fused twins.

``backend`` imports it when a GPU is first used, so a run on a CPU never does.
"""

from minijepa.kernels import twins  # noqa: F401
