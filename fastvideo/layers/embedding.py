"""Sinusoidal timestep embedding and rotary position tables."""

import math

import torch


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
    x1, x2 = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1).flatten(-2).to(x.dtype)
