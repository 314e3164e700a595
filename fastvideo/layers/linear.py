"""Linear layers whose weights can be spread over ranks (Megatron-LM, arXiv 1909.08053)."""

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.distributed.groups import Group
from fastvideo.layers.tensor_parallel import TensorParallel


class ColumnLinear(nn.Linear, TensorParallel):
    """A linear layer that gives each rank a slice of the outputs, of each of `pieces` stacked outputs alike.

    Several matrices with one input, such as those of query, key and value, are one layer of as many pieces.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, pieces: int = 1) -> None:
        super().__init__(in_features, pieces * out_features, bias)
        self.pieces = pieces

    def shard(self, group: Group) -> None:
        self.slice_parameter("weight", 0, group, self.pieces)
        if self.bias is not None:
            self.slice_parameter("bias", 0, group, self.pieces)
        self.out_features = self.weight.shape[0]


class RowLinear(nn.Linear, TensorParallel):
    """A linear layer that takes a slice of the inputs on each rank and gives the whole output on all."""

    def shard(self, group: Group) -> None:
        self.slice_parameter("weight", 1, group)
        self.in_features = self.weight.shape[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.group.size == 1:
            return super().forward(x)
        y = self.group.all_reduce(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias
