"""Low-rank branches beside linear layers (LoRA, arXiv 2106.09685)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from fastvideo.distributed.groups import Group
from fastvideo.layers.tensor_parallel import TensorParallel

BRANCH = "lora"
"""The name under which a layer has its branch."""


@dataclass(frozen=True)
class LowRank:
    """`up @ down`, which is added to one of the matrices that a layer holds stacked; what of it belongs to this rank.

    A layer that gives each rank a slice of its outputs takes those rows of `up`; one that takes a slice of its inputs
    takes those columns of `down`.
    """

    down: torch.Tensor
    """[r, in]."""
    up: torch.Tensor
    """[out, r], with the strength in it."""
    part: int = 0
    """Which of the stacked matrices."""
    parts: int = 1
    """How many there are."""


class LoraBranch(nn.Module):
    """What several adapters add to the output of one linear layer.

    Its matrices are buffers that no state dict has: they move with the layer, and are none of the model's weights.
    """

    down: torch.Tensor

    def __init__(self, pieces: Sequence[LowRank], group: Group) -> None:
        """`group` shares the layer's inputs: each rank's `down` sees a part of them."""
        super().__init__()
        self.group = group
        self.hook: RemovableHandle | None = None
        """What calls it after the layer."""
        self.places: list[tuple[int, int, int, int]] = []
        """Of each piece: its rows of `down`, start and stop, and its part and parts of the outputs."""
        self.register_buffer("down", torch.cat([piece.down for piece in pieces]).contiguous(), persistent=False)
        start = 0
        for number, piece in enumerate(pieces):
            stop = start + len(piece.down)
            self.places.append((start, stop, piece.part, piece.parts))
            self.register_buffer(f"up_{number}", piece.up.contiguous(), persistent=False)
            start = stop

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """`y` [..., out], the layer's own output for `x` [..., in], with the branch added in place."""
        hidden = self.group.all_reduce(F.linear(x, self.down)).reshape(-1, len(self.down))
        rows = y.view(-1, y.shape[-1])
        for number, (start, stop, part, parts) in enumerate(self.places):
            width = y.shape[-1] // parts
            up: torch.Tensor = getattr(self, f"up_{number}")
            rows[:, part * width : (part + 1) * width].addmm_(hidden[:, start:stop], up.t())
        return y


def takes_branch(layer: nn.Module, parameter: str) -> bool:
    """Whether a low-rank change of the layer's own `parameter` can be computed beside it."""
    return isinstance(layer, nn.Linear) and parameter == "weight"


def check_adaptable(layer: nn.Module, parameter: str, name: str) -> None:
    """Check that an adapter can change the layer's own `parameter`; the one place that says what it cannot.

    Args:
        layer: that has it.
        parameter: such as "weight".
        name: of the parameter in its model, for messages.

    Raises:
        ValueError: its weights are quantized.
    """
    weight = getattr(layer, parameter, None)
    plain = isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.itemsize >= 2
    # quantized ones of some libraries look like those that they were made of
    if not plain or not (type(weight) is nn.Parameter or _is_sharded(weight)):
        held = str(weight.dtype) if type(weight) is nn.Parameter else type(weight if plain else layer).__name__
        raise ValueError(
            f"LoRA on {name} ({held}): adapters of quantized weights are not available in this version; load the "
            "model without quantization, or leave the adapter out"
        )


def _is_sharded(weight: object) -> bool:
    """Whether `weight` is one of which each rank has a shard."""
    from torch.distributed.tensor import DTensor

    return isinstance(weight, DTensor)


def set_branch(layer: nn.Module, pieces: Sequence[LowRank]) -> None:
    """Give `layer` a branch of `pieces` in place of the one that it has; none takes it away."""
    before = getattr(layer, BRANCH, None)
    if before is not None:
        before.hook.remove()
        delattr(layer, BRANCH)
    if not pieces:
        return
    group = Group("tp")
    if isinstance(layer, TensorParallel) and "weight" in layer.shards and layer.shards["weight"].dim == 1:
        group = layer.group
    branch = LoraBranch(pieces, group)
    layer.add_module(BRANCH, branch)
    # a hook, since layers of any class that is linear can have a branch, and most have none
    branch.hook = layer.register_forward_hook(_add_branch)


def _add_branch(layer: nn.Module, args: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor:
    branch: LoraBranch = getattr(layer, BRANCH)
    return branch(args[0], y)
