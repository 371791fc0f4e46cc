"""steps.csv: a row for each step, so that warm-up and spikes are visible.

Rows are added at each epoch's end and before each checkpoint is saved; a run that goes on drops those from after its
checkpoint.
"""

import csv
import os

from minijepa.errors import CheckpointError, ConfigError
from minijepa.files import open_plain, replaced

FILE = "steps.csv"
COLUMNS = "step", "loss", "grad_norm", "lr"


def start_steps(folder, rows=()):
    """A steps.csv with these rows alone."""
    with replaced(folder / FILE, "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def append_steps(folder, rows):
    """Add rows (step, loss, norm, rate), and have them on the disk. Raises CheckpointError in one line."""
    try:
        with open(folder / FILE, "a", newline="") as file:
            csv.writer(file).writerows((step, *(f"{value:.6g}" for value in values)) for step, *values in rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"can't write {folder / FILE}: {error.strerror}") from None


def read_steps(folder, last):
    """The rows up to step ``last`` as tuples of strings; [] where there is no such file, or no row in it.

    What comes after the row of ``last`` may be torn: the program was killed while it wrote that. Raises ConfigError for
    a file that is not this program's, or lacks the row of ``last``.
    """
    path, rows, step = folder / FILE, [], 0
    try:
        with open_plain(path, newline="") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != COLUMNS:
                raise ConfigError(f"{path} has other columns than this program writes")
            while step < last and (row := next(reader, None)) is not None:
                step = _checked(row, step)
                if step <= last:  # the first part may be missing, and all the others be later
                    rows.append(tuple(row))
    except FileNotFoundError:
        return []
    except (OSError, csv.Error, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} is damaged ({reason}): without it, the run goes on too") from None
    if rows and step != last:
        raise ConfigError(f"{path} is damaged (it ends before step {last}): without it, the run goes on too")
    return rows


def _checked(row, before):
    """A row's step. Raises ValueError for what is not four numbers, of a step after ``before``."""
    if len(row) != len(COLUMNS) or int(row[0]) <= before:
        raise ValueError(f"after step {before} comes {', '.join(row)[:50]}")
    for value in row[1:]:
        float(value)
    return int(row[0])
