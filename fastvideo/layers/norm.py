"""Normalisation layers, and elementwise work on activations that goes through the cache in blocks.

On a CPU, each elementwise step over all tokens is a trip through memory, and each of its temporaries a fresh range of
pages. Where no gradient is wanted, `in_blocks` does all steps for some rows before it takes the next.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.distributed.groups import Group
from fastvideo.layers.tensor_parallel import TensorParallel

BLOCK_ELEMENTS = 1 << 17
"""Of a block: its fp32 temporaries fit into a core's cache."""


def blocks_help(x: torch.Tensor) -> bool:
    """Whether elementwise work on `x` gains from going through the cache in blocks, and nothing forbids it."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def in_blocks(
    function: Callable[..., torch.Tensor], x: torch.Tensor, *others: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`function(x, *others)`, which works on each row [..., d] of tensors of one shape and gives `x`'s shape, in `x`'s
    dtype or a wider one; some rows at a time where that helps. The result is in the dtype of `x`, in `out` if given,
    whose rows lie one after the other."""
    if out is None and not blocks_help(x):
        return function(x, *others).to(x.dtype)
    rows = max(1, BLOCK_ELEMENTS // x.shape[-1]) * torch.get_num_threads()
    if out is None:
        if x.numel() <= rows * x.shape[-1]:
            return function(x, *others).to(x.dtype)
        out = torch.empty(x.shape, dtype=x.dtype)
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, *others)]
    written = out.view(flat[0].shape)
    for start in range(0, len(written), rows):
        written[start : start + rows] = function(*(tensor[start : start + rows] for tensor in flat))
    return out


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, silu: bool = False, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`x` [..., d] over its root mean square, times `weight` [d], then SiLU of it if `silu`: computed in fp32, in the
    dtype of `x`. `out`, whose rows lie one after the other, gets the result."""

    def normalise(x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1] + eps)
        normed = (wide * scale if wide is x else wide.mul_(scale)).mul_(weight)
        return F.silu(normed, inplace=True) if silu else normed

    if blocks_help(x):
        return in_blocks(normalise, x, out=out)
    normed = F.rms_norm(x, (x.shape[-1],), weight, eps)
    result = F.silu(normed) if silu else normed
    return result if out is None else out.copy_(result)


def modulated_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """The layer norm of `x` [B, L, d], times 1 + `scale`, plus `shift`, each [B, 1, d] or [B, L, d] fp32: computed in
    fp32, in the dtype of `x` (adaptive layer norm of DiT, arXiv 2212.09748)."""
    shape = (x.shape[-1],)
    if scale.shape[1] > 1 or (x.device.type != "cpu" and x.dtype != torch.float32):
        return (F.layer_norm(x.float(), shape, None, None, eps) * (1 + scale) + shift).to(x.dtype)
    # one pass: the modulation is the norm's weight and bias, which stay in fp32 beside a bf16 input
    parts = zip(x.split(1), (1 + scale).squeeze(1), shift.squeeze(1), strict=True)
    normed = [F.layer_norm(one, shape, weight, bias, eps) for one, weight, bias in parts]
    return normed[0] if len(normed) == 1 else torch.cat(normed)


def gated_sum(x: torch.Tensor, h: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """`x` + `h` * `gate` for [B, L, d], [B, L, d] and [B, 1, d] or [B, L, d] fp32: computed in fp32, in the dtype of
    `x`."""
    if gate.shape[1] > 1:
        return in_blocks(lambda x, h, gate: (x.float() + h * gate).to(x.dtype), x, h, gate)
    if len(x) > 1:
        return torch.cat([gated_sum(*one) for one in zip(x.split(1), h.split(1), gate.split(1), strict=True)])
    return in_blocks(lambda x, h: x.float() + h * gate.view(-1), x, h)


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
        assert self.eps is not None
        if self.group.size == 1:
            return rms_norm(x, self.weight, self.eps)
        wide = x.float()
        squares = self.group.all_reduce(wide.square().sum(dim=-1, keepdim=True))
        scale = torch.rsqrt(squares / self.shards["weight"].full + self.eps)
        return (wide * scale * self.weight.float()).to(x.dtype)
