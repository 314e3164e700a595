"""Embedding tables, sinusoidal timestep embedding and rotary position tables."""

import math

import torch
from torch import nn

from fastvideo.distributed.groups import Group
from fastvideo.layers.tensor_parallel import TensorParallel


class VocabParallelEmbedding(nn.Embedding, TensorParallel):
    """An embedding whose rows are spread over ranks, evenly or not; each rank gets the whole result."""

    def shard(self, group: Group) -> None:
        self.slice_parameter("weight", 0, group, even=False)
        self.num_embeddings = self.weight.shape[0]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.group.size == 1:
            return super().forward(ids)
        first, stop = self.shards["weight"].bounds(self.shards["weight"].full)
        mine = (ids >= first) & (ids < stop)
        if stop == first:
            rows = self.weight.new_zeros(*ids.shape, self.embedding_dim)
        else:
            rows = super().forward((ids - first).clamp(0, stop - first - 1)) * mine.unsqueeze(-1)
        return self.group.all_reduce(rows)


class ColumnEmbedding(nn.Embedding, TensorParallel):
    """An embedding that gives each rank a slice of the columns."""

    def shard(self, group: Group) -> None:
        self.slice_parameter("weight", 1, group)
        self.embedding_dim = self.weight.shape[1]


def timestep_embedding(timesteps: torch.Tensor, dim: int) -> torch.Tensor:
    """Cosines, then sines, of `timesteps` [...] at `dim / 2` frequencies: fp32 [..., dim].

    Source: "Attention Is All You Need", section 3.5, in the order used by diffusion models (cosine first).
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[..., None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def rotary_angles(length: int, dim: int, theta: float = 10_000.0) -> torch.Tensor:
    """Angles [length, dim / 2] in float64 of positions 0 .. length - 1 (RoFormer, arXiv 2104.09864)."""
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.arange(length, dtype=torch.float64)[:, None] * frequencies


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs of the last dimension of `x` [B, L, heads, D] by tables [L, D / 2] in fp32."""
    if torch.compiler.is_compiling():  # the compiler has no complex numbers
        a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = cos[:, None], sin[:, None]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)
    # as complex numbers: a pair is one, and a rotation a product
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos, sin)[:, None]).flatten(-2).to(x.dtype)
