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
        self.act = ACTIVATIONS[act]
        self.fc_out = RowLinear(hidden_features, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc_out(self.act(self.fc_in(x)))
