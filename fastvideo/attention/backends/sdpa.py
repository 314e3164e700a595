"""`torch.nn.functional.scaled_dot_product_attention`: exact, and runs everywhere."""

import torch
import torch.nn.functional as F

from fastvideo.attention.backends import cpu_products
from fastvideo.attention.backends.base import AttentionBackend, AttentionCall


class SDPABackend(AttentionBackend):
    """PyTorch's own attention; it picks its flash, memory-efficient or plain kernel by itself. On CPUs where two
    products are quicker, it is these."""

    name = "TORCH_SDPA"

    def why_not(self, call: AttentionCall) -> str | None:
        if call.logsumexp and call.device not in ("cpu", "cuda"):
            return f"gives no log-sum-exp on {call.device}, which ring attention needs"
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
        if bias is None and not causal and cpu_products.pays(q, k, v):
            return cpu_products.attend(q, k, v, scale)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale).transpose(1, 2)

    def with_logsumexp(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        aten = torch.ops.aten
        if q.device.type == "cpu":
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        elif q.dtype != torch.float32 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256:
            out, lse = aten._scaled_dot_product_flash_attention(q, k, v)[:2]
        else:
            out, lse = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        # one kernel pads the log-sum-exps
        return out.transpose(1, 2), lse[..., : q.shape[2]].transpose(1, 2)
