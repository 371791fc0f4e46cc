"""The errors that a user can see.

Every class derives from :class:`MinijepaError`, whose message is one clear line: what is wrong, where, and what to do.
The command lines print that line and exit with status 2 (1 if training itself went wrong): see ``minijepa/cli.py``. A
traceback always means a bug in minijepa.
"""


class MinijepaError(Exception):
    """Base of all errors below: catch this one to catch them all."""


class ConfigError(MinijepaError, ValueError):
    """A setting is unknown, has a bad value, or contradicts another setting."""


class DataError(MinijepaError):
    """A data file is missing, truncated or not what it claims to be."""


class CheckpointError(MinijepaError):
    """A checkpoint can't be read, or does not fit the model that it is loaded into."""


class MissingPartError(MinijepaError, AttributeError):
    """A model was asked for a network that it does not have: an exported encoder comes without its predictor."""


class DeviceError(MinijepaError):
    """The requested device can't be used, or arrays of different devices were mixed."""


class TrainingError(MinijepaError):
    """Training went wrong: a loss that is not finite, a parameter that receives no gradient."""


class TapeError(MinijepaError, RuntimeError):
    """The tape was used in a way that has no meaning: a second backward, a loss that is not on it, nesting."""


class ShapeError(MinijepaError, ValueError):
    """An operation was given, or its backward returned, an array of the wrong shape."""


class DtypeError(MinijepaError, TypeError):
    """An operation was given, or returned, an array of the wrong dtype."""


class GradcheckError(MinijepaError, AssertionError):
    """An analytic gradient differs from the finite-difference one."""
