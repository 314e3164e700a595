"""What tensor-parallel layers share. They are built whole, and sharded before their weights are loaded."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from fastvideo.distributed.groups import Group
from fastvideo.distributed.tensor import TensorShard
from fastvideo.utils import require


class TensorParallel(ABC):
    """A layer that can hold a slice of its weights. Until `shard` is called it is the plain layer."""

    group: Group = Group("tp")
    """The ranks that share the layer; this one alone by default."""
    shards: Mapping[str, TensorShard] = MappingProxyType({})
    """Which slice this rank holds of each of the layer's own parameters that are sliced, by name."""

    @abstractmethod
    def shard(self, group: Group) -> None:
        """Keep the slice of this rank of `group`; the parameters have no memory yet.

        Raises:
            ValueError: a size that must divide by the group's does not.
        """

    def slice_parameter(self, name: str, dim: int, group: Group, pieces: int = 1, even: bool = True) -> None:
        """Replace parameter `name`, `pieces` of which are stacked along `dim`, by its slice on this rank."""
        assert isinstance(self, nn.Module)
        whole = getattr(self, name)
        extent = whole.shape[dim] // pieces
        require(
            not even or extent % group.size == 0, "tp_size", group.size, f"must divide {extent}, a width of the model"
        )
        shard = TensorShard(dim, group.rank, group.size, whole.shape[dim])
        start, stop = shard.bounds(extent)
        shape = list(whole.shape)
        shape[dim] = pieces * (stop - start)
        memory = torch.empty(shape, dtype=whole.dtype, device=whole.device)
        setattr(self, name, nn.Parameter(memory, requires_grad=whole.requires_grad))
        self.group = group
        self.shards = {**self.shards, name: shard}


def shard_layers(model: nn.Module, group: Group) -> None:
    """Shard every tensor-parallel layer of `model`, on the meta device, over `group`.

    Raises:
        ValueError: a width of the model does not divide by the group's size.
    """
    for module in model.modules():
        if isinstance(module, TensorParallel):
            module.shard(group)
