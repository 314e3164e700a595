"""Normalisation layers."""

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.distributed.groups import Group
from fastvideo.layers.tensor_parallel import TensorParallel


class FP32LayerNorm(nn.LayerNorm):
    """Layer norm computed in fp32 whatever the input's dtype; the result is fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


class ShardedRMSNorm(nn.RMSNorm, TensorParallel):
    """RMS norm over a dimension that may be spread over ranks."""

    def shard(self, group: Group) -> None:
        self.slice_parameter("weight", 0, group)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.group.size == 1:
            return super().forward(x)
        wide = x.float()
        squares = self.group.all_reduce(wide.square().sum(dim=-1, keepdim=True))
        assert self.eps is not None
        scale = torch.rsqrt(squares / self.shards["weight"].full + self.eps)
        return (wide * scale * self.weight.float()).to(x.dtype)
