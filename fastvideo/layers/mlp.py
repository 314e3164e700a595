"""The two-layer perceptron."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.layers.linear import ColumnLinear, RowLinear

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


class MLP(nn.Module):
    """`fc_out(act(fc_in(x)))`; `act` is a name in `ACTIVATIONS`."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int, act: str = "gelu_tanh") -> None:
        super().__init__()
        self.fc_in = ColumnLinear(in_features, hidden_features)
        self.act_name = act
        self.fc_out = RowLinear(hidden_features, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.act_name == "gelu_tanh" and can_fuse(self.fc_in, x):
            return self.fc_out(linear_gelu(self.fc_in, x))
        return self.fc_out(ACTIVATIONS[self.act_name](self.fc_in(x)))


FUSED_DTYPES = (torch.float32, torch.bfloat16)


def can_fuse(layer: nn.Linear, x: torch.Tensor) -> bool:
    """Whether `linear_gelu` is quicker and computes what `layer` would: a plain product on a CPU, nothing beside it."""
    if type(layer) is not ColumnLinear or type(layer.weight) is not nn.Parameter or layer._forward_hooks:
        return False
    # autocast does not reach the product: it would get an input and a weight of two dtypes
    alike = x.dtype == layer.weight.dtype and not torch.is_autocast_enabled("cpu")
    wanted = x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return alike and wanted and x.dtype in FUSED_DTYPES and torch.backends.mkldnn.is_available()


def linear_gelu(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """GELU, in its tanh form, of `layer`'s output for `x` [..., in], before that is rounded and written (oneDNN)."""
    pointwise = torch.ops.mkldnn._linear_pointwise
    out: torch.Tensor = pointwise(x, layer.weight, layer.bias, "gelu", [], "tanh")
    return out
