"""The two attention layers that model files use. Layout in and out: [batch, length, heads, head_dim]."""

from typing import Protocol

import torch
from torch import nn

from fastvideo.attention.backends.base import AttentionBackend
from fastvideo.attention.backends.sdpa import SDPABackend


class LocalAttention(nn.Module):
    """Attention whose queries, keys and values are all on this rank: cross-attention, text encoders."""

    backend: AttentionBackend = SDPABackend()
    """Injected after the model is built; PyTorch's own until then."""

    def __init__(self, *, causal: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.causal = causal
        self.scale = scale

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of `q` [B, L, heads, D] over `k`, `v` [B, S, heads, D]; `bias` broadcasts to [B, heads, L, S]."""
        return self.backend(q, k, v, bias=bias, causal=self.causal, scale=self.scale)


class Exchange(Protocol):
    """Full-sequence attention over ranks that hold a part of the sequence each."""

    def __call__(
        self,
        backend: AttentionBackend,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


def local_exchange(
    backend: AttentionBackend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor | None = None
) -> torch.Tensor:
    """The exchange among one rank: there is nothing to send."""
    return backend(q, k, v) if gate is None else backend.with_gate(q, k, v, gate)


class DistributedAttention(nn.Module):
    """The self-attention of a diffusion transformer over the full sequence of video tokens.

    When the sequence is spread over ranks, `exchange` moves what is needed between them; the default is one rank.
    """

    backend: AttentionBackend = SDPABackend()

    def __init__(self, *, gated: bool = False) -> None:
        """`gated` says that `forward` is given a gate."""
        super().__init__()
        self.gated = gated
        self.on_grid = True
        """Whether queries and keys are the tokens of one grid; not so where those of frames before it come first."""
        self.exchange: Exchange = local_exchange

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of `q` over `k`, `v`, each [B, L on this rank, heads, D], as is `gate`, the factor on a coarse
        attention that is added where a checkpoint has one."""
        return self.exchange(self.backend, q, k, v, gate)
