"""`torch.nn.functional.scaled_dot_product_attention`: exact, and runs everywhere."""

import torch
import torch.nn.functional as F

from fastvideo.attention.backends.base import AttentionBackend, AttentionCall


class SDPABackend(AttentionBackend):
    """PyTorch's own attention; it picks its flash, memory-efficient or plain kernel by itself."""

    name = "TORCH_SDPA"

    def why_not(self, call: AttentionCall) -> str | None:
        return None

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
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale).transpose(1, 2)
