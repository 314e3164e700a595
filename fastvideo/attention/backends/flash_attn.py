"""Flash attention (arXiv 2205.14135): exact, for 16-bit tensors on CUDA.

The kernels of the packages `flash_attn_interface` (version 3, Hopper GPUs) and `flash_attn` (version 2) are used where
they are installed; otherwise PyTorch's own, of cuDNN and of version 2.
"""

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastvideo.attention.backends.base import AttentionBackend, AttentionCall
from fastvideo.attention.backends.sdpa import SDPABackend
from fastvideo.utils import resolve

HOPPER = (9, 0)
"""The compute capability that version 3 is for."""
OWN_KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
"""Of PyTorch, the one to try first first: cuDNN's is the faster on Hopper, and for other GPUs PyTorch passes it over
where it does not run."""


class FlashBackend(AttentionBackend):
    """Flash attention and nothing else: a call that no flash kernel takes is refused."""

    name = "FLASH_ATTN"

    def why_not(self, call: AttentionCall) -> str | None:
        if call.device != "cuda":
            return f"has kernels for CUDA alone, and this is {call.device}"
        if call.dtype not in (torch.float16, torch.bfloat16):
            return f"computes in bf16 and fp16, not in {str(call.dtype).removeprefix('torch.')}"
        if call.has_bias or call.causal:
            return "takes neither a bias nor a causal mask here"
        if call.head_dim % 8 or call.head_dim > 256:
            return f"takes heads of a multiple of 8 up to 256, not of {call.head_dim}"
        if torch.cuda.get_device_capability() < (8, 0):
            return "needs a GPU of compute capability 8.0 or above"
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
        assert bias is None, "why_not refuses a bias"
        assert not causal, "why_not refuses a causal mask"
        kernel = installed_kernel()
        if kernel is not None:
            made = kernel(q, k, v, softmax_scale=scale)
            return made[0] if isinstance(made, tuple) else made  # early releases of version 3 give a log-sum-exp too
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(OWN_KERNELS, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)

    def with_logsumexp(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return SDPABackend().with_logsumexp(q, k, v)  # a flash kernel for these dtypes and heads


def installed_kernel() -> Any:
    """The attention function of the newest flash attention package that is installed and for this GPU, or None."""
    if find_spec("flash_attn_interface") is not None and torch.cuda.get_device_capability()[:1] == HOPPER[:1]:
        return resolve("flash_attn_interface:flash_attn_func")
    if find_spec("flash_attn") is not None:
        return resolve("flash_attn:flash_attn_func")
    return None
