"""What an attention backend is: a function, and one place that says what it can do."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch

from fastvideo.configs.attention import AttentionOptions

Grid = tuple[int, int, int]
"""Tokens in time, height and width."""


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
    video: bool = False
    """Whether it is among the tokens of a video, whose grid `prepare` is told."""
    gate: bool = False
    """Whether the checkpoint has a gate branch, so that `with_gate` is called."""


@dataclass(frozen=True, kw_only=True)
class LayerPlace:
    """Where a layer of full-sequence attention stands in its model, for backends that treat layers and heads alike no
    more."""

    layer: int = 0
    """Its number, from 0."""
    layers: int = 1
    """How many there are."""
    heads: int | None = None
    """Of the layer, on all ranks together; None when nobody said."""
    part: tuple[int, int] = (0, 1)
    """Which part of the heads this rank attends with, and how many equal parts there are."""


Backend = TypeVar("Backend", bound="AttentionBackend")


class AttentionBackend(ABC):
    """An implementation of softmax(q k^T * scale + bias) v, or of something close to it that is quicker."""

    name: str
    exact: ClassVar[bool] = True
    """Whether it is that up to rounding; `auto` takes no other."""
    gated: ClassVar[bool] = False
    """Whether it has `with_gate`."""
    traced: ClassVar[bool] = True
    """Whether a compiled block may be compiled with it; one that is not is called from there as it is."""

    @classmethod
    def for_layer(cls: type[Backend], options: AttentionOptions, place: LayerPlace) -> Backend:
        """The backend of the layer at `place`. Most are the same everywhere and have no options."""
        return cls()

    @abstractmethod
    def why_not(self, call: AttentionCall) -> str | None:
        """The reason why this backend cannot run `call` here, or None when it can."""

    def prepare(self, grid: Grid, device: torch.device) -> None:
        """Told before the blocks run, once a forward: the tokens of the calls to come lie on `grid`, width fastest.
        What depends on nothing else is made here. A backend to which all tokens are alike does nothing."""
        return

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

    def with_gate(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The attention, plus `gate` [B, L, heads, D] times a coarse one among the means of blocks of tokens. Only
        where it is `gated`."""
        raise NotImplementedError(f"{self.name} has no gate branch")
