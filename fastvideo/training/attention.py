"""Attention by two matrix products: on CPU its backward pass is several times faster than the fused kernel's for
sequences of a few hundred tokens, where the score matrix fits in the cache."""

import torch
from torch import nn

from fastvideo.attention.backends.base import AttentionBackend, AttentionCall
from fastvideo.attention.layer import DistributedAttention, LocalAttention


class MatmulAttention(AttentionBackend):
    """softmax(q k^T * scale + bias) v, as it stands."""

    name = "MATMUL"

    def why_not(self, call: AttentionCall) -> str | None:
        return "it has no causal mask" if call.causal else None

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
    ) -> torch.Tensor:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        scores = (q * scale).transpose(1, 2) @ k.permute(0, 2, 3, 1)
        if bias is not None:
            scores = scores + bias
        return (scores.softmax(dim=-1).to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)


def use_matmul_attention(model: nn.Module) -> None:
    """Give every attention layer of `model` the backend above."""
    for module in model.modules():
        if isinstance(module, LocalAttention | DistributedAttention):
            module.backend = MatmulAttention()
