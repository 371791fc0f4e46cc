"""From a batch to a trained network: the step, its optimiser and averages, the run folder and checkpoints."""
