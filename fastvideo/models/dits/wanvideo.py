"""Wan video transformer.

Sources: "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv 2503.20314), section 4.3; the reference
that results are compared with is `diffusers/models/transformers/transformer_wan.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.attention.layer import DistributedAttention, LocalAttention
from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig
from fastvideo.layers.embedding import apply_rotary, rotary_angles, timestep_embedding
from fastvideo.layers.linear import ColumnLinear, RowLinear
from fastvideo.layers.mlp import MLP
from fastvideo.layers.norm import FP32LayerNorm, ShardedRMSNorm, gated_sum, modulated_norm
from fastvideo.models.dits.base import BaseDiT, BlockContext


@dataclass(frozen=True)
class WanContext(BlockContext):
    """See `BlockContext`."""

    along_sequence: ClassVar[Mapping[str, int]] = {"rotary": 0}
    by_prompt: ClassVar[Mapping[str, int]] = {"text": 1, "text_bias": 0}
    by_clip: ClassVar[tuple[str, ...] | None] = ("modulation", "temb")

    modulation: torch.Tensor
    """[B, 6, d] fp32, from the timestep; [B, T, 6, d] where each latent frame has its own."""
    temb: torch.Tensor
    """[B, d] or [B, T, d], the timestep embedding that the output layer uses."""
    text: torch.Tensor
    """[B, S, d], the projected text."""
    text_bias: torch.Tensor | None
    """[S] fp32 on the cross-attention logits, or None."""
    rotary: tuple[torch.Tensor, torch.Tensor]
    """Cosines and sines, each [L, head_dim / 2] fp32, along the sequence."""
    image: torch.Tensor | None
    """[B, S, d], the projected states of the images, or None."""

    def modulate(self, table: torch.Tensor, embedded: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The rows of a learned `table` [1, n, d], each plus what a timestep says, `embedded` [B, n or 1, d]: n tensors
        [B, 1, d] fp32. In fp32, as in bf16 modulation and residual sums lose what the reference keeps."""
        return (table.float() + embedded.float()).chunk(table.shape[1], dim=1)


@dataclass(frozen=True)
class WanFrameContext(WanContext):
    """Where each latent frame has a timestep of its own."""

    along_sequence: ClassVar[Mapping[str, int]] = {"rotary": 0, "frames": 0}

    frames: torch.Tensor
    """[L], the frame that each token is of."""

    def modulate(self, table: torch.Tensor, embedded: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As above, of `embedded` [B, T, n or 1, d]: n tensors [B, L, d] fp32."""
        rows = (table.float().unsqueeze(1) + embedded.float()).unbind(dim=2)
        return tuple(row[:, self.frames] for row in rows)


class WanSelfAttention(nn.Module):
    """Attention among the video tokens, with normalised and rotated queries and keys; in some checkpoints with the gate
    of a coarse attention beside it."""

    def __init__(self, dim: int, num_heads: int, eps: float, gated: bool) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.qkv = ColumnLinear(dim, dim, pieces=3)
        self.norm_q = ShardedRMSNorm(dim, eps=eps)
        self.norm_k = ShardedRMSNorm(dim, eps=eps)
        self.gate = ColumnLinear(dim, dim) if gated else None
        self.attention = DistributedAttention(gated=gated)
        self.out = RowLinear(dim, dim)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        gate = None if self.gate is None else self.gate(x).unflatten(-1, (-1, self.head_dim))
        return self.out(self.attention(*self.heads(x, rotary), gate).flatten(2))

    def heads(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values [B, L, heads, D] of the tokens `x`."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in (q, k, v))
        return apply_rotary(q, *rotary), apply_rotary(k, *rotary), v


class WanCrossAttention(nn.Module):
    """Attention from the video tokens to the text and, separately, to the images that the model is shown.

    Keys and values of the text are made anew at each step. With the padding left out they are 0.01% of a block's work
    at 832x480 and 81 frames, and 0.8% in the model of the package; kept, they would be a second state of every block
    that LoRA, offloading and clips that run together would have to mind.
    """

    def __init__(self, dim: int, num_heads: int, eps: float, images: bool) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.q = ColumnLinear(dim, dim)
        self.kv = ColumnLinear(dim, dim, pieces=2)
        self.norm_q = ShardedRMSNorm(dim, eps=eps)
        self.norm_k = ShardedRMSNorm(dim, eps=eps)
        if images:
            self.kv_image = ColumnLinear(dim, dim, pieces=2)
            self.norm_k_image = ShardedRMSNorm(dim, eps=eps)
        self.attention = LocalAttention()
        self.out = RowLinear(dim, dim)

    def forward(self, x: torch.Tensor, context: WanContext) -> torch.Tensor:
        q = self.q(x)
        q = self.norm_q(q).to(q.dtype).unflatten(-1, (-1, self.head_dim))
        if not context.clips:
            return self.out(self._seen(q, context))
        clips = cast(tuple[WanContext, ...], context.clips)  # texts of several lengths
        queries = q.split([len(clip.text) for clip in clips])
        return self.out(torch.cat([self._seen(*one) for one in zip(queries, clips, strict=True)]))

    def _seen(self, q: torch.Tensor, context: WanContext) -> torch.Tensor:
        """What the queries [B, L, heads, D] find in text and images: [B, L, d]."""
        k, v = self.kv(context.text).chunk(2, dim=-1)
        k = self.norm_k(k).to(v.dtype)
        bias = context.text_bias
        if bias is not None:
            bias = bias.expand(1, 1, q.shape[1], -1)
        y = self.attention(q, *(z.unflatten(-1, (-1, self.head_dim)) for z in (k, v)), bias)
        if context.image is not None:
            k, v = self.kv_image(context.image).chunk(2, dim=-1)
            k = self.norm_k_image(k).to(v.dtype)
            y = y + self.attention(q, *(z.unflatten(-1, (-1, self.head_dim)) for z in (k, v)))
        return y.flatten(2)


class WanImageEmbedder(nn.Module):
    """States [B, S, image_dim] of images to tokens [B, S, d]. Those of several images follow each other, and where the
    model tells them apart, each has a learned position."""

    def __init__(self, image_dim: int, dim: int, positions: int | None) -> None:
        super().__init__()
        self.position = None if positions is None else nn.Parameter(torch.zeros(1, positions, image_dim))
        self.norm_in = FP32LayerNorm(image_dim, 1e-5)
        self.mlp = MLP(image_dim, image_dim, dim, act="gelu")
        self.norm_out = FP32LayerNorm(dim, 1e-5)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.position is not None:
            states = states + self.position
        tokens = self.mlp(self.norm_in(states).to(states.dtype))
        return self.norm_out(tokens).to(tokens.dtype)


def modulation_table(rows: int, dim: int) -> nn.Parameter:
    """Learned shifts, scales and gates [1, rows, dim], to which those of the timestep are added."""
    return nn.Parameter(nn.init.normal_(torch.empty(1, rows, dim), std=dim**-0.5))


class WanBlock(nn.Module):
    """Self-attention, cross-attention and perceptron; the timestep shifts, scales and gates the outer two."""

    def __init__(self, arch: WanVideoArchConfig) -> None:
        super().__init__()
        dim, eps = arch.hidden_size, arch.eps
        self.eps = eps
        self.self_attn = WanSelfAttention(dim, arch.num_attention_heads, eps, arch.gate_compress)
        self.cross_norm = FP32LayerNorm(dim, eps) if arch.cross_attn_norm else nn.Identity()
        self.cross_attn = WanCrossAttention(dim, arch.num_attention_heads, eps, images=arch.image_dim is not None)
        self.ffn = MLP(dim, arch.ffn_dim, dim)
        self.modulation = modulation_table(6, dim)

    def forward(self, x: torch.Tensor, context: WanContext) -> torch.Tensor:
        parts = context.modulate(self.modulation, context.modulation)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = parts
        x = gated_sum(x, self.attend(modulated_norm(x, scale, shift, self.eps), context), gate)
        x = x + self.cross_attn(self.cross_norm(x).to(x.dtype), context)
        return gated_sum(x, self.ffn(modulated_norm(x, ffn_scale, ffn_shift, self.eps)), ffn_gate)

    def attend(self, x: torch.Tensor, context: WanContext) -> torch.Tensor:
        """Self-attention."""
        return self.self_attn(x, context.rotary)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def rotary_table(
    grid: tuple[int, int, int], head_dim: int, device: torch.device, start: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [T * H * W, head_dim / 2] for a token grid whose first frame is number `start`: a third of each
    head for height, for width, the rest for time."""
    spatial = 2 * (head_dim // 6)
    dims = (head_dim - 2 * spatial, spatial, spatial)
    t, h, w = (rotary_angles(length, dim) for length, dim in zip((start + grid[0], *grid[1:]), dims, strict=True))
    t = t[start:]
    angles = torch.cat(
        (
            t[:, None, None].expand(*grid, -1),
            h[None, :, None].expand(*grid, -1),
            w[None, None, :].expand(*grid, -1),
        ),
        dim=-1,
    ).flatten(0, 2)
    return angles.cos().float().to(device), angles.sin().float().to(device)


class WanTransformer3DModel(BaseDiT[WanContext]):
    """The transformer of Wan 2.1 and 2.2, which is shown text and maybe images.

    Predicts the flow's velocity (noise minus data) for latents [B, C, T, H, W] at timesteps [B] in [0, 1000].
    """

    timestep_input = "modulation"

    def __init__(self, arch: WanVideoArchConfig) -> None:
        super().__init__()
        self.arch = arch
        dim = arch.hidden_size
        self.patch_embedding = nn.Conv3d(arch.in_channels, dim, kernel_size=arch.patch_size, stride=arch.patch_size)
        self.time_embedder = MLP(arch.freq_dim, dim, dim, act="silu")
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = MLP(arch.text_dim, dim, dim)
        self.image_embedder = None
        if arch.image_dim is not None:
            self.image_embedder = WanImageEmbedder(arch.image_dim, dim, arch.pos_embed_seq_len)
        self.blocks = nn.ModuleList(WanBlock(arch) for _ in range(arch.num_layers))
        self.proj_out = nn.Linear(dim, arch.out_channels * math.prod(arch.patch_size))
        self.modulation_out = modulation_table(2, dim)

    def embed(  # type: ignore[override]  # names its own conditions
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        *,
        text: torch.Tensor,
        text_padding: int = 0,
        image: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, WanContext]:
        """Tokens and context.

        Args:
            latents: [B, C, T, H, W].
            timestep: [B], or [B, T] where each latent frame has its own, with patches of one frame.
            text: [B, S, text_dim], the text encoder's output.
            text_padding: how many all-zero rows follow `text`. They take part in cross-attention, as in the
                reference, but one key whose logit is raised by log(text_padding) stands for all of them: they are
                equal, so the softmax is the same.
            image: [B, S, image_dim], what an image encoder sees in the images; of a model that is shown some.

        Raises:
            ValueError: images where the model takes none, or none where it does; height or width is no multiple of the
                patch size, or more tokens than rotary positions.
        """
        grid = self._grid(latents)
        patches = self._patchify(latents)
        weight = self.patch_embedding.weight
        tokens = F.linear(patches.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias)
        temb = self.time_embedder(timestep_embedding(timestep, self.arch.freq_dim)).to(tokens.dtype)
        modulation = self.time_proj(F.silu(temb)).unflatten(-1, (6, -1)).float()
        text_bias = None
        if text_padding:
            text = F.pad(text, (0, 0, 0, 1))
            text_bias = torch.zeros(text.shape[1], device=text.device)
            text_bias[-1] = math.log(text_padding)
        text = self.text_embedder(text.to(tokens.dtype))
        rotary = rotary_table(grid, self.arch.attention_head_dim, tokens.device)
        if (image is None) != (self.image_embedder is None):
            raise ValueError("image: must be given to a model with image_dim, and to no other")
        if image is not None and self.image_embedder is not None:
            image = self.image_embedder(image.to(tokens.dtype))
        shared = (modulation, temb, text, text_bias, rotary, image)
        if timestep.ndim == 1:
            return tokens, WanContext(*shared, grid=grid)
        if timestep.shape[1] != grid[0]:
            raise ValueError(f"timestep of {timestep.shape[1]} frames: must be of the {grid[0]} of the tokens")
        frames = torch.arange(grid[0], device=tokens.device).repeat_interleave(grid[1] * grid[2])
        return tokens, WanFrameContext(*shared, frames, grid=grid)

    def project(self, tokens: torch.Tensor, context: WanContext) -> torch.Tensor:
        """Patches of the velocity."""
        shift, scale = context.modulate(self.modulation_out, context.temb.unsqueeze(-2))
        return self.proj_out(modulated_norm(tokens, scale, shift, self.arch.eps))

    def unpatchify(self, patches: torch.Tensor, context: WanContext) -> torch.Tensor:
        """The velocity [B, C, T, H, W]."""
        (t, h, w), (pt, ph, pw) = context.grid, self.arch.patch_size
        x = patches.reshape(-1, t, h, w, pt, ph, pw, self.arch.out_channels)
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _grid(self, latents: torch.Tensor) -> tuple[int, int, int]:
        t, h, w = latents.shape[2:]
        pt, ph, pw = self.arch.patch_size
        if t % pt or h % ph or w % pw:
            raise ValueError(f"latents of {t}x{h}x{w}: each must be a multiple of the patch size {pt}x{ph}x{pw}")
        grid = (t // pt, h // ph, w // pw)
        if max(grid) > self.arch.rope_max_seq_len:
            raise ValueError(
                f"{max(grid)} tokens along one axis: at most rope_max_seq_len={self.arch.rope_max_seq_len}; "
                "make the video shorter or smaller"
            )
        return grid

    def _patchify(self, latents: torch.Tensor) -> torch.Tensor:
        """Patches [B, L, C * pt * ph * pw] of `latents` [B, C, T, H, W], the order of a convolution's weight."""
        pt, ph, pw = self.arch.patch_size
        x = latents.unflatten(4, (-1, pw)).unflatten(3, (-1, ph)).unflatten(2, (-1, pt))
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
