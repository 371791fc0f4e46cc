"""All operations with a backward pass, one family per file. Importing this package gives ``Tensor`` its operators."""

from minijepa.autograd import Tensor
from minijepa.ops.attention import Packing, attention
from minijepa.ops.elementwise import add, div, exp, log, mul, neg, power, sqrt, sub, tanh
from minijepa.ops.gelu import gelu
from minijepa.ops.layer_norm import layer_norm
from minijepa.ops.losses import cross_entropy, l2_loss, smooth_l1_loss
from minijepa.ops.matmul import linear, matmul
from minijepa.ops.reductions import max, mean, sum
from minijepa.ops.rows import RowIndex, rows
from minijepa.ops.shaping import concat, expand, getitem, reshape, transpose
from minijepa.ops.softmax import softmax

__all__ = [
    "Packing", "RowIndex", "add", "attention", "concat", "cross_entropy", "div", "exp", "expand", "gelu", "getitem",
    "l2_loss", "layer_norm", "linear", "log", "matmul", "max", "mean", "mul", "neg", "power", "reshape", "rows",
    "smooth_l1_loss", "softmax", "sqrt", "sub", "sum", "tanh", "transpose",
]  # fmt: skip


def _varargs(shape):
    """Both x.reshape(2, 3) and x.reshape((2, 3))."""
    return shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape


Tensor.__add__ = add
Tensor.__radd__ = lambda self, other: add(other, self)
Tensor.__sub__ = sub
Tensor.__rsub__ = lambda self, other: sub(other, self)
Tensor.__mul__ = mul
Tensor.__rmul__ = lambda self, other: mul(other, self)
Tensor.__truediv__ = div
Tensor.__rtruediv__ = lambda self, other: div(other, self)
Tensor.__neg__ = neg
Tensor.__pow__ = power
Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = lambda self, other: matmul(other, self)
Tensor.__getitem__ = getitem
Tensor.sum = sum
Tensor.mean = mean
Tensor.max = max
Tensor.exp = exp
Tensor.log = log
Tensor.sqrt = sqrt
Tensor.tanh = tanh
Tensor.reshape = lambda self, *shape: reshape(self, _varargs(shape))
Tensor.transpose = lambda self, *axes: transpose(self, _varargs(axes) or None)
Tensor.expand = lambda self, *shape: expand(self, _varargs(shape))
Tensor.T = property(transpose)
