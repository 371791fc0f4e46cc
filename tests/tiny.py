"""What tests share: the smallest network, data set and command lines, and one line for a forward and a backward."""

import contextlib
import json
import os

import numpy as np
import pytest

from minijepa import Function, Parameter, Tape
from minijepa.data import Dataset
from minijepa.errors import MinijepaError

NETWORK = dict(
    encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2, predictor_embed_dim=8, predictor_depth=1,
    predictor_num_heads=2,
)  # fmt: skip
DEEPER = NETWORK | dict(encoder_depth=2, predictor_depth=2)


def noise(count):
    """A data set of ``count`` training images of noise."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (count, 3, 32, 32), np.uint8), draw.integers(0, 10, count).astype(np.uint8)
    return Dataset("noise", tuple("abcdefghij"), images, labels, images[:5], labels[:5], (0.5,) * 3, (0.25,) * 3)


def rewritten(path, about=None, **arrays):
    """Write a checkpoint or an exported file again, with some of its fields and arrays changed."""
    with np.load(path) as file:
        everything = dict(file)
    about = json.loads(str(everything["about"])) | (about or {})
    np.savez(path, **(everything | arrays | {"about": np.array(json.dumps(about))}))


def differentiate(compute, dy=None, **options):
    """The tensor that ``compute()`` returns, after a backward pass from it; dy is a cotangent, or draws one for y."""
    with Tape(**options) as tape:
        y = compute()
    tape.backward(y, dy(y) if callable(dy) else dy)
    return y


def normal_like(y):
    """A cotangent for y: the same normal numbers each time."""
    return np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)


def values_and_gradients(fn, arrays, dy=normal_like):
    """[the value of ``fn``, the gradient of each array], by default for a random cotangent."""
    leaves = [Parameter(a) for a in arrays]
    y = differentiate(lambda: fn(*leaves), dy)
    return [y.data, *(leaf.grad for leaf in leaves)]


def operation(forward=None, backward=None, name="MyOp", base=Function, **attributes):
    """A subclass of an operation, with another forward(ctx, *arrays) or backward(ctx, dy)."""
    methods = {"forward": forward, "backward": backward}
    return type(name, (base,), attributes | {name: staticmethod(f) for name, f in methods.items() if f is not None})


def raising(error):
    """A function that raises ``error``, whatever it is given."""

    def fail(*args, **kwargs):
        raise error.with_traceback(None)  # else it would keep the frames of every test alive

    return fail


@contextlib.contextmanager
def raises(error, message):
    """The block raises ``error``, which is one of ours, with exactly this message."""
    with pytest.raises(error) as caught:
        yield
    assert str(caught.value) == message and isinstance(caught.value, MinijepaError)


class Planted:
    """Unpickling it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("planted",)


def contents(folder, names="*"):
    """{name: bytes} of the files in a folder, or of those whose name fits."""
    return {path.name: path.read_bytes() for path in folder.glob(names)}


def flags(settings):
    """The command-line flags of settings."""
    return [f"--set={name}={value}" for name, value in settings.items()]


def command(capsys, main, *args):
    """(exit status, stdout, stderr) of a program's main, which may end as argparse does."""
    capsys.readouterr()
    try:
        status = main([str(a) for a in args])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def refusal(capsys, main, *args):
    """The one line with which a program refuses its arguments, with status 2 and before it prints anything."""
    status, out, err = command(capsys, main, *args)
    assert (status, out, err.count("\n")) == (2, "", 1), (status, out, err)
    return err
