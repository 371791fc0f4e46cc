"""Exercises: a forward pass is given, its backward pass is yours to write, and every attempt is checked.

    python -m minijepa.exercise                     # the list, and how far you are
    python -m minijepa.exercise layer_norm          # writes exercise_layer_norm.py; run again, it judges the attempt
    python -m minijepa.exercise layer_norm --hint   # one step of the derivation at a time
    python -m minijepa.exercise layer_norm --solution

``lessons/`` holds the exercises; ``judge.py`` says whether an attempt is right and, if not, what is missing.
"""
