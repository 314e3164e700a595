"""Causal Wan video transformer: the frames of a chunk see each other and the chunks before, and none after.

Sources: CausVid (arXiv 2412.07772) and Self-Forcing (arXiv 2506.08009), which train the Wan 2.1 transformer so. Weights
and layers are those of the transformer that sees all frames.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fastvideo.attention.rolling import RollingCache
from fastvideo.configs.models.dits.causal_wanvideo import CausalWanVideoArchConfig
from fastvideo.models.dits.wanvideo import WanBlock, WanContext, WanTransformer3DModel, rotary_table


@dataclass(frozen=True)
class CausalWanContext(WanContext):
    """Of a chunk."""

    by_clip: ClassVar[tuple[str, ...] | None] = None

    memory: RollingCache
    """Keys and values of the chunks before."""


class CausalWanBlock(WanBlock):
    """A block whose self-attention reaches back."""

    def __init__(self, arch: CausalWanVideoArchConfig) -> None:
        super().__init__(arch)
        self.self_attn.attention.on_grid = False

    def attend(self, x: torch.Tensor, context: WanContext) -> torch.Tensor:
        """Self-attention over the chunk and what is left of those before."""
        if not isinstance(context, CausalWanContext):
            return super().attend(x, context)
        q, k, v = self.self_attn.heads(x, context.rotary)
        k, v = context.memory.extend(self, k, v)
        return self.self_attn.out(self.self_attn.attention(q, k, v).flatten(2))


class CausalWanTransformer3DModel(WanTransformer3DModel):
    """Predicts the flow's velocity for a chunk of latents, after those that its `memory` holds.

    Without a memory the latents are all there is, and it is the transformer that sees all frames.
    """

    arch: CausalWanVideoArchConfig

    def __init__(self, arch: CausalWanVideoArchConfig) -> None:
        super().__init__(arch)
        self.blocks = nn.ModuleList(CausalWanBlock(arch) for _ in range(arch.num_layers))

    def new_memory(self, grid: tuple[int, int, int]) -> RollingCache:
        """An empty memory for a video whose latents are `grid` frames, rows and columns."""
        (t, h, w), (_, ph, pw) = grid, self.arch.patch_size
        # of a video that is shorter than the window all frames are seen
        window = min(self.arch.window, t)
        sink = min(self.arch.sink_size, window - self.arch.num_frames_per_block)
        return RollingCache(window, sink, (h // ph) * (w // pw))

    def embed(  # type: ignore[override]  # names its own conditions
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        *,
        text: torch.Tensor,
        text_padding: int = 0,
        memory: RollingCache | None = None,
    ) -> tuple[torch.Tensor, WanContext]:
        """As of the other transformer, of which `latents` [B, C, T, H, W] are the frames that follow `memory`.

        Raises:
            ValueError: as there, or the video gets longer than there are rotary positions.
        """
        tokens, context = super().embed(latents, timestep, text=text, text_padding=text_padding)
        if memory is None:
            return tokens, context
        end, most = memory.start + context.grid[0], self.arch.rope_max_seq_len
        if end > most:
            raise ValueError(f"{end} latent frames: at most rope_max_seq_len={most}; make the video shorter")
        parts = {field.name: getattr(context, field.name) for field in dataclasses.fields(WanContext)}
        parts["rotary"] = rotary_table(context.grid, self.arch.attention_head_dim, tokens.device, memory.start)
        return tokens, CausalWanContext(**parts, memory=memory)
