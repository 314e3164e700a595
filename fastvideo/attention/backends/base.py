"""What an attention backend is: a function, and one place that says what it can do."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """The facts of an attention call that decide whether a backend can run it."""

    device: str
    dtype: torch.dtype
    head_dim: int
    has_bias: bool = False
    causal: bool = False
    logsumexp: bool = False
    """Whether `with_logsumexp` is called."""


class AttentionBackend(ABC):
    """An implementation of softmax(q k^T * scale + bias) v."""

    name: str

    @abstractmethod
    def why_not(self, call: AttentionCall) -> str | None:
        """The reason why this backend cannot run `call` here, or None when it can."""

    @abstractmethod
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
        """Attention of `q` [B, L, heads, D] over `k`, `v` [B, S, heads, D].

        Args:
            bias: added to the logits, broadcastable to [B, heads, L, S], or None.
            causal: query i sees keys 0 .. i only.
            scale: factor on the logits, 1 / sqrt(D) when None.

        Returns:
            [B, L, heads, D] in the dtype of `q`.
        """

    def with_logsumexp(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The attention, and the log of the sum of its exponentiated logits [B, L, heads] in fp32, from which the
        attention over more keys can be put together. Only where `why_not` says that it can."""
        raise NotImplementedError(f"{self.name} gives no log-sum-exp")
