"""The diffusion transformer that every family fills in: embed, scatter, blocks, gather, unembed."""

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

Context = TypeVar("Context")


class SequenceSharding(Protocol):
    """How a token sequence is spread over ranks."""

    def scatter(self, tokens: torch.Tensor, context: Any) -> tuple[torch.Tensor, Any]:
        """This rank's part of `tokens` [B, L, d] and of whatever in `context` goes along the sequence."""

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """The whole of `tokens` again, on every rank."""


class WholeSequence:
    """The sharding over one rank: the identity."""

    def scatter(self, tokens: torch.Tensor, context: Any) -> tuple[torch.Tensor, Any]:
        return tokens, context

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


class BaseDiT(nn.Module, ABC, Generic[Context]):
    """A diffusion transformer. A family writes `embed`, its block and `unembed`; `forward` is this one for all."""

    blocks: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.sequence: SequenceSharding = WholeSequence()

    @abstractmethod
    def embed(self, latents: torch.Tensor, timestep: torch.Tensor, **conditions: Any) -> tuple[torch.Tensor, Context]:
        """Tokens [B, L, d] of `latents` [B, C, T, H, W], and what the blocks need beside them."""

    @abstractmethod
    def unembed(self, tokens: torch.Tensor, context: Context) -> torch.Tensor:
        """The prediction [B, C, T, H, W] from the last block's `tokens` [B, L, d]."""

    def run_blocks(self, tokens: torch.Tensor, context: Context) -> torch.Tensor:
        """All blocks in order. What skips blocks between steps wraps this method and nothing else."""
        for block in self.blocks:
            tokens = block(tokens, context)
        return tokens

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, **conditions: Any) -> torch.Tensor:
        """Predict from `latents` [B, C, T, H, W] at `timestep` [B]; `conditions` are the keywords of `embed`."""
        tokens, context = self.embed(latents, timestep, **conditions)
        local_tokens, local_context = self.sequence.scatter(tokens, context)
        local_tokens = self.run_blocks(local_tokens, local_context)
        return self.unembed(self.sequence.gather(local_tokens), context)
