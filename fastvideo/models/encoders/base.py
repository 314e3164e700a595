"""What every text encoder gives: embeddings, a mask, and the padding that the model was trained with; and every image
encoder: states."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastvideo.layers.residence import OnDevice, Residence
from fastvideo.models.encoders.image_processor import ImageProcessor


@dataclass(frozen=True)
class TextEmbeddings:
    """Embedded prompts."""

    states: torch.Tensor
    """[B, S, d], zero past each prompt's end; S is the longest prompt of the batch."""
    mask: torch.Tensor
    """[B, S] bool, true on tokens."""
    padding: int
    """How many more zero rows the diffusion model expects behind the S given."""


class TextEncoder(nn.Module, ABC):
    """A text encoder that owns its tokenizer, template and padding."""

    blocks: nn.ModuleList
    residence: Residence = OnDevice()
    """Where the weights are while nobody uses the model; set by the loader."""
    tokenizer: Any
    """Set by the loader."""
    text_len: int
    """The padded length that the diffusion model expects; set by the loader."""

    @abstractmethod
    def forward(self, prompts: list[str]) -> TextEmbeddings:
        """Embed `prompts`."""


class ImageEncoder(nn.Module, ABC):
    """An image encoder that owns how its images are scaled and normalised."""

    residence: Residence = OnDevice()
    """Where the weights are while nobody uses the model; set by the loader."""
    processor: ImageProcessor
    """Set by the loader."""

    @property
    @abstractmethod
    def state_shape(self) -> tuple[int, int]:
        """S and d of the states of an image."""

    @abstractmethod
    def forward(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """States [N, S, d] of `images`, each [H, W, 3] on the CPU: uint8, or fp32 in [0, 1]."""
