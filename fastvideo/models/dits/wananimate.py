"""Wan transformer that animates the person in an image, by the poses and the face of another.

Sources: "Wan-Animate: Unified Character Animation and Replacement with Holistic Replication" (arXiv 2509.14055),
section 3; of the motion encoder "Latent Image Animator" (arXiv 2203.09043); the reference that results are compared
with is `diffusers/models/transformers/transformer_wan_animate.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.attention.layer import LocalAttention
from fastvideo.configs.models.dits.wananimate import WanAnimateArchConfig
from fastvideo.layers.linear import ColumnLinear, RowLinear
from fastvideo.layers.norm import FP32LayerNorm
from fastvideo.models.dits.wanvideo import WanBlock, WanContext, WanTransformer3DModel

SLOPE = 0.2
"""Of the motion encoder's leaky ReLUs."""


class FaceVideo:
    """The face of a clip. What the model makes of it is the same at every step, so it is made once."""

    def __init__(self, pixels: torch.Tensor, at_once: int | None = None) -> None:
        """`pixels` [B, 3, S, size, size] are in [-1, 1]; `at_once` of the frames go through the motion encoder
        together, as many as the model's config says when None."""
        self.pixels = pixels
        self.at_once = at_once
        self.tokens: torch.Tensor | None = None
        """[B, T * n, d] for T latent frames, the first of which has no face: set by the model."""


@dataclass(frozen=True)
class WanAnimateContext(WanContext):
    """With the face."""

    along_sequence: ClassVar[Mapping[str, int]] = {"rotary": 0, "face_bias": 0}
    by_clip: ClassVar[tuple[str, ...] | None] = None

    face: torch.Tensor
    """[B, T * n, d], n tokens of the face for each latent frame."""
    face_bias: torch.Tensor
    """[L, T * n] fp32, 0 for the tokens of the face that are of a video token's own frame, and minus infinity for the
    others. The reference cuts the sequence into frames in its place; where ranks share it, their parts hold no whole
    frames."""


class MotionConv2d(nn.Module):
    """A convolution of weights that are scaled when they are used (arXiv 1710.10196, section 4.1). It may halve the
    sides, and blurs before it does (arXiv 1904.11486); it may end in a bias and a leaky ReLU."""

    def __init__(
        self, in_dim: int, out_dim: int, kernel: int, *, halve: bool = False, padding: int = 0, act: bool
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(out_dim, in_dim, kernel, kernel)))
        self.bias = nn.Parameter(torch.zeros(out_dim, 1, 1)) if act else None
        self.scale = 1 / math.sqrt(in_dim * kernel**2)
        self.kernel, self.halve, self.padding = kernel, halve, padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.halve:
            line = torch.tensor((1, 3, 3, 1), dtype=x.dtype, device=x.device) / 8
            blur = (line[:, None] * line).expand(x.shape[1], 1, -1, -1)
            x = F.conv2d(x, blur, padding=(self.kernel + 1) // 2, groups=x.shape[1])
        x = F.conv2d(x, self.weight * self.scale, stride=2 if self.halve else 1, padding=self.padding)
        return x if self.bias is None else F.leaky_relu(x + self.bias, SLOPE) * math.sqrt(2)


class MotionLinear(nn.Module):
    """A linear layer of weights that are scaled when they are used."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(out_dim, in_dim)))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.scale = 1 / math.sqrt(in_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


class MotionBlock(nn.Module):
    """Two convolutions beside a shortcut, to half the sides."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv1 = MotionConv2d(in_dim, in_dim, 3, padding=1, act=True)
        self.conv2 = MotionConv2d(in_dim, out_dim, 3, halve=True, act=True)
        self.conv_skip = MotionConv2d(in_dim, out_dim, 1, halve=True, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.conv2(self.conv1(x)) + self.conv_skip(x)) / math.sqrt(2)


class MotionEncoder(nn.Module):
    """From a face [N, 3, size, size] to its motion [N, d]: a sum of a few learned directions, orthogonal to each other,
    whose lengths are what the network says."""

    def __init__(self, arch: WanAnimateArchConfig) -> None:
        super().__init__()
        channels, style = arch.motion_channels, arch.motion_style_dim
        self.conv_in = MotionConv2d(3, channels[0], 1, act=True)
        self.res_blocks = nn.ModuleList(MotionBlock(*pair) for pair in zip(channels, channels[1:], strict=False))
        self.conv_out = MotionConv2d(channels[-1], style, 4, act=False)
        widths = (style,) * 5 + (arch.motion_dim,)
        self.motion_network = nn.Sequential(*(MotionLinear(*pair) for pair in zip(widths, widths[1:], strict=False)))
        self.directions = nn.Parameter(nn.init.normal_(torch.empty(arch.motion_encoder_dim, arch.motion_dim)))

    def forward(self, face: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(face)
        for block in self.res_blocks:
            x = block(x)
        lengths = self.motion_network(self.conv_out(x).flatten(1))
        orthogonal = torch.linalg.qr(self.directions.float() + 1e-8).Q
        return (lengths.float() @ orthogonal.T).to(lengths.dtype)


class FaceEncoder(nn.Module):
    """From the motion of each frame [B, S, in], S = 4 k + 1, to tokens [B, k + 1, heads + 1, d]: convolutions that see
    the present and past frames only, the first frame standing for those before it. The last token is learned."""

    def __init__(self, arch: WanAnimateArchConfig) -> None:
        super().__init__()
        hidden, self.heads = arch.face_encoder_hidden_dim, arch.face_encoder_num_heads
        self.conv1_local = nn.Conv1d(arch.motion_encoder_dim, hidden * self.heads, 3)
        self.conv2 = nn.Conv1d(hidden, hidden, 3, stride=2)
        self.conv3 = nn.Conv1d(hidden, hidden, 3, stride=2)
        self.norm = FP32LayerNorm(hidden, 1e-6, elementwise_affine=False)
        self.out_proj = nn.Linear(hidden, arch.hidden_size)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, arch.hidden_size))

    def forward(self, motion: torch.Tensor) -> torch.Tensor:
        batch = len(motion)
        x = self._causal(self.conv1_local, motion.mT).unflatten(1, (self.heads, -1)).flatten(0, 1)
        for conv in (self.conv2, self.conv3):
            x = self._causal(conv, self._activated(x))
        tokens = self.out_proj(self._activated(x).mT).unflatten(0, (batch, -1)).transpose(1, 2)
        return torch.cat((tokens, self.padding_tokens.expand(batch, tokens.shape[1], -1, -1)), dim=2)

    def _causal(self, conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return conv(F.pad(x, (2, 0), mode="replicate"))

    def _activated(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.norm(x.mT).to(x.dtype)).mT


class FaceAttention(nn.Module):
    """Attention from each video token to the face in its own frame."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.norm = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.q = ColumnLinear(dim, dim)
        self.kv = ColumnLinear(dim, dim, pieces=2)
        self.norm_q = nn.RMSNorm(self.head_dim, eps)
        self.norm_k = nn.RMSNorm(self.head_dim, eps)
        self.attention = LocalAttention()
        self.out = RowLinear(dim, dim)

    def forward(self, x: torch.Tensor, face: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q = self.q(self.norm(x).to(x.dtype))
        k, v = self.kv(self.norm(face).to(x.dtype)).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in (q, k, v))
        return self.out(self.attention(self.norm_q(q), self.norm_k(k), v, bias[None, None]).flatten(2))


class WanAnimateBlock(WanBlock):
    """A block, and behind some of them the look at the face."""

    def __init__(self, arch: WanAnimateArchConfig, looks: bool) -> None:
        super().__init__(arch)
        self.face = FaceAttention(arch.hidden_size, arch.num_attention_heads, arch.eps) if looks else None

    def forward(self, x: torch.Tensor, context: WanContext) -> torch.Tensor:
        y = super().forward(x, context)
        if self.face is None:
            return y
        assert isinstance(context, WanAnimateContext)
        return y + self.face(y, context.face, context.face_bias)


class WanAnimateTransformer3DModel(WanTransformer3DModel):
    """The Wan transformer that is shown an image, poses and a face.

    The first latent frame of its input is the image; poses and face are of those that follow.
    """

    arch: WanAnimateArchConfig

    def __init__(self, arch: WanAnimateArchConfig) -> None:
        super().__init__(arch)
        every, patch = arch.inject_face_latents_blocks, arch.patch_size
        self.pose_patch_embedding = nn.Conv3d(arch.latent_channels, arch.hidden_size, patch, stride=patch)
        self.motion_encoder = MotionEncoder(arch)
        self.face_encoder = FaceEncoder(arch)
        self.blocks = nn.ModuleList(WanAnimateBlock(arch, layer % every == 0) for layer in range(arch.num_layers))

    def embed(  # type: ignore[override]  # names its own conditions
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        *,
        text: torch.Tensor,
        text_padding: int = 0,
        image: torch.Tensor,
        pose: torch.Tensor,
        face: FaceVideo,
    ) -> tuple[torch.Tensor, WanAnimateContext]:
        """Tokens and context.

        Args:
            latents: [B, C, 1 + t, H, W].
            timestep, text, text_padding, image: as of the model that animates nobody.
            pose: [B or 1, z, t, H, W], the latents of the poses.
            face: of B or 1 videos of 4 (t - 1) + 1 frames.

        Raises:
            ValueError: `pose` or `face` is of another size.
        """
        t, size = latents.shape[2] - 1, self.arch.motion_encoder_size
        if (t, *latents.shape[3:]) != tuple(pose.shape[2:]):
            raise ValueError(
                f"pose of {tuple(pose.shape[2:])}: must be of the latents' {tuple(latents.shape[2:])}, one frame fewer"
            )
        if tuple(face.pixels.shape[2:]) != (4 * (t - 1) + 1, size, size):
            raise ValueError(
                f"face of {tuple(face.pixels.shape[2:])}: must be {4 * (t - 1) + 1} frames of {size}x{size} for {t} "
                "latent frames"
            )
        tokens, context = super().embed(latents, timestep, text=text, text_padding=text_padding, image=image)
        weight, (_, height, width) = self.pose_patch_embedding.weight, context.grid
        patches = self._patchify(pose).to(weight.dtype)
        posed = F.linear(patches, weight.flatten(1), self.pose_patch_embedding.bias)
        first = height * width
        tokens = torch.cat((tokens[:, :first], tokens[:, first:] + posed), dim=1)
        if face.tokens is None:
            face.tokens = self._face_tokens(face)
        of_token = torch.arange(t + 1, device=tokens.device).repeat_interleave(first)
        of_face = torch.arange(t + 1, device=tokens.device).repeat_interleave(face.tokens.shape[1] // (t + 1))
        elsewhere = of_token[:, None] != of_face
        bias = torch.zeros(elsewhere.shape, device=tokens.device).masked_fill_(elsewhere, -math.inf)
        shared = {field.name: getattr(context, field.name) for field in fields(context)}
        seen = face.tokens.expand(len(tokens), -1, -1)
        return tokens, WanAnimateContext(**shared, face=seen, face_bias=bias)

    def _face_tokens(self, face: FaceVideo) -> torch.Tensor:
        """See `FaceVideo.tokens`."""
        weight = self.motion_encoder.conv_in.weight
        frames = face.pixels.to(weight.device, weight.dtype).transpose(1, 2)
        parts = frames.flatten(0, 1).split(face.at_once or self.arch.motion_encoder_batch_size)
        motion = torch.cat([self.motion_encoder(part) for part in parts])
        tokens = self.face_encoder(motion.unflatten(0, frames.shape[:2]))
        return F.pad(tokens, (0, 0, 0, 0, 1, 0)).flatten(1, 2)
