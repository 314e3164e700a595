"""Name the object at each token: a second task for the video transformer, for as long as it is trained.

Its middle block is asked what is where: the colour, shape and motion of the object at each token, or that there is
none. Which words belong together, and to which place, is what takes a transformer longest to learn of two objects.
The idea of aligning a middle block is that of "Representation Alignment for Generation" (arXiv 2410.06940); the
targets here are those of the world itself.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.models.dits.step_cache import StepCache
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from recipes.shapes.captions import LABELS, attributes
from recipes.shapes.world import Scene, trajectory

if TYPE_CHECKING:
    from fastvideo.models.dits.base import BaseDiT

BLOCK = 4
"""Whose tokens are read, counted from 1."""
NAMES = ("colour", "shape", "motion")
PIXELS_PER_TOKEN = 16
WEIGHT = 0.05
"""Of this task beside the flow's, at the start; it falls to 0."""


class Recorder(StepCache):
    """Runs all blocks, and keeps the tokens after block `BLOCK`."""

    tokens: torch.Tensor

    def run(self, model: "BaseDiT[Any]", tokens: torch.Tensor, context: Any) -> torch.Tensor:
        """See `StepCache`."""
        self.tokens = self.through(model.blocks[:BLOCK], tokens, context)
        return self.through(model.blocks[BLOCK:], self.tokens, context)


class AlignedDiT(nn.Module):
    """The transformer under a linear classifier of its tokens for each of `NAMES`; class 0 is that nothing is there."""

    def __init__(self, dit: WanTransformer3DModel) -> None:
        super().__init__()
        self.dit = dit
        width = dit.arch.hidden_size
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1 + len(LABELS[name])) for name in NAMES})
        self.recorder = Recorder()

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, **conditions: Any) -> torch.Tensor:
        """The velocity; see `WanTransformer3DModel`."""
        self.dit.step_cache = self.recorder
        velocity: torch.Tensor = self.dit(latents, timestep, **conditions)
        return velocity

    def alignment_loss(self, scenes: list[Scene], frames: int, size: int) -> torch.Tensor:
        """The cross-entropies of the last pass's tokens, summed, for clips of `frames` frames of `size` pixels."""
        tokens = self.norm(self.recorder.tokens)
        wanted = token_labels(scenes, frames, size).to(tokens.device)
        losses = [
            F.cross_entropy(head(tokens).float().flatten(0, 1), wanted[:, index].flatten())
            for index, head in enumerate(self.heads.values())
        ]
        return torch.stack(losses).sum()


def token_labels(scenes: list[Scene], frames: int, size: int) -> torch.Tensor:
    """What is at each token: int64 [B, 3, L], by `NAMES`; 0 is nothing, and others are 1 more than in `LABELS`."""
    side = size // PIXELS_PER_TOKEN
    centre = (np.arange(side) + 0.5) / side - 0.5
    labels = np.zeros((len(scenes), len(NAMES), 1 + (frames - 1) // 4, side, side), dtype=np.int64)
    for scene, label in zip(scenes, labels, strict=True):
        for index, item in enumerate(scene.objects):
            path = trajectory(item, frames)
            x, y, radius = (_by_latent_frame(values)[:, None, None] for values in (path.x, path.y, path.radius))
            there = np.hypot(centre[None, None, :] - x, centre[None, :, None] - y) < radius
            words = attributes(scene, index)
            for name, values in zip(NAMES, label, strict=True):
                values[there] = 1 + words[name]
    return torch.from_numpy(labels).flatten(2)


def _by_latent_frame(values: np.ndarray) -> np.ndarray:
    """The mean of `values` [T] over the frames of each latent frame: the first alone, then four at a time."""
    return np.concatenate((values[:1], values[1:].reshape(-1, 4).mean(axis=1)))
