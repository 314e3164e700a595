"""SageAttention: attention with quantized products, close to exact, on CUDA.

`SAGE_ATTN` is the package `sageattention` (arXiv 2410.02367 and 2411.10958: INT8 logits), `SAGE_ATTN_THREE` the package
`sageattn3` (arXiv 2505.11594: NVFP4, for Blackwell GPUs).
"""

from abc import abstractmethod
from importlib.util import find_spec
from typing import Any, ClassVar

import torch

from fastvideo.attention.backends.base import AttentionBackend, AttentionCall
from fastvideo.utils import resolve


class _SageBackend(AttentionBackend):
    """What both have in common: one function of one package."""

    exact = False
    traced = False  # the packages' kernels cannot be
    package: ClassVar[str]
    install: ClassVar[str]
    """How to install it."""
    capability: ClassVar[tuple[int, int]]
    """The least compute capability that it runs on."""
    head_dims: ClassVar[tuple[int, ...]]

    def why_not(self, call: AttentionCall) -> str | None:
        if call.device != "cuda":
            return f"has kernels for CUDA alone, and this is {call.device}"
        if find_spec(self.package) is None:
            return f"needs the package {self.package}, which is not installed; {self.install}"
        if call.dtype not in (torch.float16, torch.bfloat16):
            return f"takes bf16 and fp16, not {str(call.dtype).removeprefix('torch.')}"
        if call.has_bias or call.causal:
            return "takes neither a bias nor a causal mask here"
        if call.logsumexp:
            return "gives no log-sum-exp, which ring attention needs; use ulysses_size in place of ring_size"
        if call.head_dim not in self.head_dims:
            return f"takes heads of {', '.join(map(str, self.head_dims))}, not of {call.head_dim}"
        if torch.cuda.get_device_capability() < self.capability:
            return f"needs a GPU of compute capability {'.'.join(map(str, self.capability))} or above"
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
        return self.attend(q, k, v, scale)

    @abstractmethod
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
        """As `__call__`, by the package."""


class SageBackend(_SageBackend):
    """SageAttention 1 and 2; the package picks the kernel for the GPU."""

    name = "SAGE_ATTN"
    package = "sageattention"
    install = "pip install sageattention"
    capability = (8, 0)
    head_dims = (64, 96, 128)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
        kernel: Any = resolve("sageattention:sageattn")
        return kernel(q, k, v, tensor_layout="NHD", is_causal=False, sm_scale=scale)


class SageThreeBackend(_SageBackend):
    """SageAttention 3."""

    name = "SAGE_ATTN_THREE"
    package = "sageattn3"
    install = "build it from the folder sageattention3_blackwell of github.com/thu-ml/SageAttention"
    capability = (10, 0)
    head_dims = (64, 128)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
        assert scale is None, "its kernel has the usual scale"
        kernel: Any = resolve("sageattn3:sageattn3_blackwell")
        made = kernel(*(x.transpose(1, 2).contiguous() for x in (q, k, v)), is_causal=False)
        return made.transpose(1, 2)
