"""Latents to video."""

from collections.abc import Iterator
from typing import Protocol

import torch

from fastvideo.distributed.groups import Group
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.layers.residence import Resident
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch, written
from fastvideo.pipelines.stages.base import PipelineStage


class VideoDecoder(Resident, Protocol):
    """The part of a VAE that turns latents into video, some latent frames at a time."""

    def parts(self, latents: torch.Tensor) -> int:
        """How many parts `stream` gives, the same on every rank."""

    def stream(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """The video [B, 3, T, H, W] in [-1, 1] of `latents` [B, C, t, h, w], in order along T.

        Where ranks share the work, rank 0 has the video, and the parts of the others have no frames.
        """


class DecodingStage(PipelineStage):
    """Decodes the latents; cancelled or reported between chunks of frames."""

    name = "decoding"
    reads = ("latents",)
    writes = ("video",)

    def __init__(self, vae: VideoDecoder) -> None:
        self.vae = vae

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        """Decode.

        Raises:
            Cancelled: before the chunk at which it was asked for.
            FloatingPointError: a frame is not finite.
        """
        latents = written(batch.latents, "latents")
        frames, vae = [], self.use(self.vae)
        for part in batch.control.steps(self.name, vae.stream(latents), vae.parts(latents)):
            frames.append(checked_frames(part, self.groups.control))
        batch.video = torch.cat(frames, dim=2)
        return batch


def checked_frames(part: torch.Tensor, control: Group) -> torch.Tensor:
    """Decoded frames [B, 3, T, H, W] in [-1, 1], of which the ranks of `control` have none but the first, as fp32 in
    [0, 1] on the CPU.

    Raises:
        FloatingPointError: one is not finite, on any rank.
    """
    wrong = (~torch.isfinite(part)).any().int().cpu()
    # only rank 0 has frames, and all have to stop
    if control.all_reduce(wrong):
        raise FloatingPointError(
            "NaN or infinity in the decoded frames: the VAE's precision does not hold; try vae_precision='fp32'"
        )
    return (part.float() / 2 + 0.5).clamp(0, 1).cpu()
