"""The layers of a vision transformer, and the flat vector that holds all of a model's parameters."""

import numpy as np

from minijepa import ops
from minijepa.autograd import Parameter, as_float_array
from minijepa.backend import device_of, to_device, to_numpy, xp_of
from minijepa.backend.processes import shared
from minijepa.errors import CheckpointError, MinijepaError, TrainingError


def trunc_normal(rng, shape, std):
    """Normal(0, std), redrawn outside of ±2 std; its deviation is 0.88 std.

    timm's and Meta's function of this name differs: it cuts at ±2, whatever std, so for 0.02 it cuts nothing and its
    deviation is std. Meta's I-JEPA also divides the weights of attn.proj and mlp.fc2 in block l = 1, 2, ... by √(2 l).
    docs/settings.md compares.
    """
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values * std


def normal(rng, shape, std=0.02):
    """Normal(0, std): positions and the mask token."""
    return rng.standard_normal(shape) * std


class Module:
    """Something with parameters: its attributes that are Parameters or Modules, or lists or dicts of them."""

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def named_parameters(self, prefix=""):
        """Yield (dotted name, Parameter), in the order in which the attributes were set."""
        for name, value in _items(vars(self).items()):
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.named_parameters(f"{prefix}{name}.")

    def state_dict(self):
        """{name: values} of all parameters, as copies on the host."""
        return {name: to_numpy(parameter.data.copy()) for name, parameter in self.named_parameters()}

    def load_state_dict(self, state):
        """Copy values in, after checking that names and shapes are exactly this module's. Raises CheckpointError."""
        parameters, values = dict(self.named_parameters()), {}
        check_state(state, parameters)
        for name in parameters:
            try:
                values[name] = as_float_array(state[name])
            except MinijepaError as error:
                raise CheckpointError(f"{name}: {error}") from None
        for name, parameter in parameters.items():
            parameter.data[...] = to_device(values[name], device_of(parameter.data))


def _items(attributes):
    """(name, value) pairs, with name.0, name.1 ... for the items of a list or tuple, name.key for those of a dict."""
    for name, value in attributes:
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from _items((f"{name}.{key}", item) for key, item in value.items())
        else:
            yield name, value


class Linear(Module):
    """y = x wᵀ + b: (..., in) -> (..., out)"""

    def __init__(self, in_features, out_features, rng, std):
        self.weight = Parameter(trunc_normal(rng, (out_features, in_features), std), decay=True)
        self.bias = Parameter(np.zeros(out_features))

    def forward(self, x):
        return ops.linear(x, self.weight, self.bias)


class LayerNorm(Module):
    """Each row to mean 0 and variance 1, then scaled and shifted: (..., dim) -> (..., dim)"""

    def __init__(self, dim, eps):
        self.weight = Parameter(np.ones(dim))
        self.bias = Parameter(np.zeros(dim))
        self.eps = eps

    def forward(self, x):
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Attention(Module):
    """Multi-head self-attention within each sequence of a packing: (T, dim) -> (T, dim), or of the rows ``keep``."""

    def __init__(self, dim, num_heads, rng, std):
        self.qkv = Linear(dim, 3 * dim, rng, std)
        self.proj = Linear(dim, dim, rng, std)
        self.num_heads = num_heads

    def forward(self, x, packing, keep=None):
        y = ops.attention(self.qkv(x), packing, self.num_heads)
        return self.proj(y if keep is None else ops.rows(y, keep))


class Mlp(Module):
    """fc2(gelu(fc1(x))): (T, dim) -> (T, dim), with ``hidden`` features in between"""

    def __init__(self, dim, hidden, rng, std):
        self.fc1 = Linear(dim, hidden, rng, std)
        self.fc2 = Linear(hidden, dim, rng, std)

    def forward(self, x):
        return self.fc2(ops.gelu(ops.linear(x, self.fc1.weight), self.fc1.bias))


class Block(Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    ``keep``: row numbers, if only these rows of the result are wanted. Only attention mixes tokens, so the other rows
    are dropped right after it, before three quarters of a block's matrix products.
    """

    def __init__(self, dim, num_heads, mlp_ratio, eps, rng, std):
        self.norm1 = LayerNorm(dim, eps)
        self.attn = Attention(dim, num_heads, rng, std)
        self.norm2 = LayerNorm(dim, eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), rng, std)

    def forward(self, x, packing, keep=None):
        y = self.attn(self.norm1(x), packing, keep)
        x = (x if keep is None else ops.rows(x, keep)) + y
        return x + self.mlp(self.norm2(x))


def standardise_rows(x):
    """Each row of a Tensor (..., n) to mean 0 and variance 1: LayerNorm without weights (Meta's train.py)."""
    one = xp_of(x.data).ones(x.shape[-1], x.dtype)
    return ops.layer_norm(x, one, 0 * one, eps=1e-5)


class FlatParameters:
    """Parameters moved into one contiguous vector, in the given order, so that whole-model arithmetic is one line.

    ``data`` (n,) holds the values and ``grad`` (n,), if wanted, the gradients; each parameter's ``.data`` and ``.grad``
    become views into them. ``slices`` gives each name's place. A parameter shared by two layers keeps the first of its
    names.
    """

    def __init__(self, named_parameters, dtype, device, with_grad=True):
        first_names = {}
        for name, parameter in named_parameters:
            first_names.setdefault(parameter, name)
        self.parameters = {name: parameter for parameter, name in first_names.items()}
        self.slices, stop = {}, 0
        for name, parameter in self.parameters.items():
            start, stop = stop, stop + parameter.size
            self.slices[name] = slice(start, stop)
            parameter.name = name
        values = [np.ravel(p.data) for p in self.parameters.values()]
        values = np.concatenate(values).astype(dtype)
        self.data, self.is_shared = to_device(values, device), False
        self.grad = to_device(np.zeros(stop, dtype), device) if with_grad else None
        self._tie()

    def _tie(self):
        for name, parameter in self.parameters.items():
            parameter.data = self._view(self.data, name)
            parameter.grad = None if self.grad is None else self._view(self.grad, name)

    def __setstate__(self, state):
        vars(self).update(state, is_shared=False)
        self._tie()  # copy.deepcopy and pickle turn each view into an array of its own

    def share(self):
        """Move the values into memory that processes forked later have in common with this one."""
        if not self.is_shared:
            self.data, self.is_shared = shared(self.data), True
            self._tie()

    def check_tied(self):
        """Raise TrainingError if a parameter was given another array: optimiser and checkpoints would not see it."""
        data = self.data[:0].base  # that of every view
        grad = None if self.grad is None else self.grad[:0].base
        for name, parameter in self.parameters.items():
            if parameter.data.base is not data:
                raise TrainingError(f"{name} was given a new array: write into its own, parameter.data[...] = values")
            if grad is not None and (parameter.grad is None or parameter.grad.base is not grad):
                raise TrainingError(f"the gradient of {name} was replaced by another array: clear it with zero_grad()")

    def _view(self, vector, name):
        return vector[self.slices[name]].reshape(self.parameters[name].shape)

    def views(self, vector):
        """{parameter: its view into ``vector``}: what a tape's ``into`` takes."""
        return {parameter: self._view(vector, name) for name, parameter in self.parameters.items()}

    def named(self, vector):
        """{name: a copy of its part of ``vector``, in the parameter's shape}"""
        return {name: self._view(vector, name).copy() for name in self.parameters}


def check_state(state, parameters):
    """Raise CheckpointError unless ``state`` has exactly the names and shapes of ``parameters`` ({name: Parameter})."""
    missing, unknown = parameters.keys() - state.keys(), state.keys() - parameters.keys()
    for problem, names in (("lacks", missing), ("has unknown", unknown)):
        if names:
            raise CheckpointError(f"the state {problem} {len(names)} parameters, such as {min(names)}")
    for name, parameter in parameters.items():
        if np.shape(state[name]) != parameter.shape:
            raise CheckpointError(f"{name} has shape {np.shape(state[name])}, the model's is {parameter.shape}")
