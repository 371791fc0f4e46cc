"""The tutor: ``python -m minijepa.explain OP`` explains an operation, ``--step`` a whole training step."""
