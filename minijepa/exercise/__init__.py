"""Exercises (docs/exercises.md): a forward pass is given, its backward pass is yours to write, attempts are checked."""
