"""Wan transformer with a control branch (VACE).

Sources: "VACE: All-in-One Video Creation and Editing" (arXiv 2503.07598), section 3.3; the reference that results are
compared with is `diffusers/models/transformers/transformer_wan_vace.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.configs.models.dits.wanvace import WanVACEArchConfig
from fastvideo.models.dits.base import BlockContext, RunsAlone
from fastvideo.models.dits.wanvideo import WanBlock, WanContext, WanTransformer3DModel


class Steering:
    """What goes from one control block to the next within a pass."""

    control: torch.Tensor
    """[B, L, d], the control tokens; those of the context at first."""


@dataclass(frozen=True)
class WanVACEContext(WanContext):
    """With what steers."""

    along_sequence: ClassVar[Mapping[str, int]] = {"rotary": 0, "control": 1}
    by_clip: ClassVar[tuple[str, ...] | None] = ("modulation", "temb", "control")

    control: torch.Tensor
    """[B, L, d], tokens of the control latents."""
    scales: Sequence[float]
    """Of each control block's hint."""
    steering: Steering
    """Of this pass."""

    def joined(self, others: Sequence[BlockContext]) -> BlockContext:
        if any(isinstance(other, WanVACEContext) and other.scales != self.scales for other in others):
            raise RunsAlone("the clips are steered with scales of their own")
        return super().joined(others)


class WanControlBlock(WanBlock):
    """A block of the control branch, which gives a hint to a block of the main one."""

    def __init__(self, arch: WanVACEArchConfig, number: int) -> None:
        super().__init__(arch)
        self.number = number
        self.proj_in = nn.Linear(arch.hidden_size, arch.hidden_size) if number == 0 else None
        self.proj_out = nn.Linear(arch.hidden_size, arch.hidden_size)

    def hint(self, x: torch.Tensor, context: WanVACEContext) -> torch.Tensor:
        """The scaled hint; `x` are the tokens before the first block, which the first control block also sees."""
        steering = context.steering
        if self.proj_in is not None:
            steering.control = self.proj_in(context.control) + x
        steering.control = self(steering.control, context)
        return self.proj_out(steering.control) * context.scales[self.number]


class WanSteeredBlock(WanBlock):
    """A block of the main branch, with the control block that steers it, if there is one."""

    def __init__(self, arch: WanVACEArchConfig, number: int | None) -> None:
        super().__init__(arch)
        self.control = None if number is None else WanControlBlock(arch, number)

    def forward(self, x: torch.Tensor, context: WanContext) -> torch.Tensor:
        y = super().forward(x, context)
        if self.control is None:
            return y
        assert isinstance(context, WanVACEContext)
        return y + self.control.hint(x, context)


class WanVACETransformer3DModel(WanTransformer3DModel):
    """The Wan transformer, whose blocks in `vace_layers` are given hints by blocks of a control branch."""

    def __init__(self, arch: WanVACEArchConfig) -> None:
        super().__init__(arch)
        patch = arch.patch_size
        numbers = {layer: number for number, layer in enumerate(arch.vace_layers)}
        self.control_layers = len(numbers)
        self.control_embedding = nn.Conv3d(arch.vace_in_channels, arch.hidden_size, patch, stride=patch)
        self.blocks = nn.ModuleList(WanSteeredBlock(arch, numbers.get(layer)) for layer in range(arch.num_layers))

    def embed(  # type: ignore[override]  # names its own conditions
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        *,
        text: torch.Tensor,
        text_padding: int = 0,
        control: torch.Tensor,
        control_scales: Sequence[float],
    ) -> tuple[torch.Tensor, WanVACEContext]:
        """Tokens and context.

        Args:
            latents, timestep, text, text_padding: as of the model without control.
            control: [B, vace_in_channels, T, H, W].
            control_scales: of the hint for each layer in `vace_layers`.

        Raises:
            ValueError: `control` is of another size than `latents`, or not as many scales as layers.
        """
        if control.shape[2:] != latents.shape[2:] or len(control_scales) != self.control_layers:
            raise ValueError(
                f"control of {tuple(control.shape[2:])} with {len(control_scales)} scales: must be of the latents' "
                f"size {tuple(latents.shape[2:])}, with {self.control_layers} scales"
            )
        tokens, context = super().embed(latents, timestep, text=text, text_padding=text_padding)
        weight = self.control_embedding.weight
        patches = self._patchify(control).to(weight.dtype)
        controlled = F.linear(patches, weight.flatten(1), self.control_embedding.bias)
        shared = {field.name: getattr(context, field.name) for field in fields(context)}
        return tokens, WanVACEContext(**shared, control=controlled, scales=control_scales, steering=Steering())
