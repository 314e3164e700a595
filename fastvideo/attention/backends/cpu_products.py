"""Exact attention in bf16 as two matrix products: quicker than PyTorch's fused kernel on a CPU without AMX.

That kernel works on small blocks, at less than half of the speed of a large product. Here the weights of a few hundred
queries are one product with the exponential as its epilogue, while the sums are still fp32; PyTorch has that epilogue
for sigmoid, which is exp far below zero. The softmax is shifted there by a bound on the logits, |q| times the largest
|k|, in place of their maximum: softmax(x) is the same for any shift.
"""

from itertools import product

import torch
import torch.nn.functional as F

QUERIES = 256
"""At once: their weights stay in the cache."""
MARGIN = 12.0
"""The largest logit is shifted below this: sigmoid(x) is exp(x) (1 - exp(x)) or so, and exp(-12) is 6e-6."""
LARGEST_BOUND = 30.0
"""No logit is then shifted below -72, where exp is still a normal bf16 number; a head beyond it goes the usual way."""
LEAST_KEYS = 512
HEAD_DIMS = (64, 256)


def quick_here() -> bool:
    """Whether this CPU has products in bf16, but no AMX, with which the fused kernel is quick."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.cpu._is_avx512_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


HERE = quick_here()
"""A constant, for the compiler too."""


def pays(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether this was measured to be quicker for the likes of `q` [B, L, heads, D], `k` and `v` [B, S, heads, D]."""
    return (
        HERE
        and q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and HEAD_DIMS[0] <= q.shape[-1] <= HEAD_DIMS[1]
        and min(q.shape[1], k.shape[1]) >= LEAST_KEYS
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))
    )


@torch.library.custom_op("fastvideo::attend_by_products", mutates_args=())
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """softmax(q k^T * scale) v, [B, L, heads, D] in bf16; compiled code calls it as it is."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = torch.empty(q.shape, dtype=q.dtype)
    for b, h in product(range(q.shape[0]), range(q.shape[2])):
        _head(q[b, :, h], k[b, :, h], v[b, :, h], scale, out[b, :, h])
    return out


@attend.register_fake
def _like_queries(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """One head's attention, of `q` [L, D] to `k` and `v` [S, D], into `out` [L, D]."""
    scaled = q.float() * scale
    bound = scaled.norm(dim=-1) * k.float().norm(dim=-1).max()
    if not bound.max() <= LARGEST_BOUND:  # nor is NaN, which the usual way hands on
        out.copy_(F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None], scale=scale)[0, 0])
        return
    queries, shift = scaled.to(q.dtype), (-MARGIN - bound).to(q.dtype)
    k, v = k.contiguous(), v.t().contiguous()
    for part in range(0, len(q), QUERIES):
        those = slice(part, part + QUERIES)
        # keys by queries, for the shift of a query to be the bias of an output
        weights = torch.ops.mkldnn._linear_pointwise(k, queries[those], shift[those], "sigmoid", [], "")
        out[those] = ((v @ weights) / weights.sum(dim=0, dtype=torch.float32)).t()
