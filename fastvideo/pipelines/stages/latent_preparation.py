"""The noise that a video starts from."""

from collections.abc import Callable

import torch

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.pipelines.stages.base import PipelineStage
from fastvideo.platforms import current_platform

LatentShape = Callable[[SamplingParam], tuple[int, int, int, int]]
"""Channels, frames, height and width of the latents of one video."""

Begin = Callable[[torch.Tensor, ForwardBatch], torch.Tensor]
"""The latents of the first step from its noise, both [B, C, t, h, w] fp32."""

MoreFrames = Callable[[ForwardBatch], int]
"""Latent frames that a request needs in front of those of its video."""


def noise_alone(noise: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
    """The noise."""
    return noise


class LatentPreparationStage(PipelineStage):
    """Draws fp32 noise for all videos of the batch at once.

    It is drawn on the CPU from one generator whatever the device, so a seed gives the same noise everywhere, and the
    noise that the reference draws for this list of prompts. A segment of a video goes on with the generator of the one
    before.
    """

    name = "latent_preparation"
    writes = ("latents", "generator")

    def __init__(
        self,
        latent_shape: LatentShape,
        begin: Begin = noise_alone,
        more_frames: MoreFrames = lambda batch: 0,
        uses: tuple[str, ...] = (),
    ) -> None:
        """`uses` are the fields of the batch that `begin` reads beside the request."""
        self.latent_shape = latent_shape
        self.begin = begin
        self.more_frames = more_frames
        self.reads = uses

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        generator = batch.noise_from or torch.Generator("cpu").manual_seed(batch.sampling.seed)
        channels, frames, height, width = self.latent_shape(batch.sampling)
        shape = (batch.size, channels, frames + self.more_frames(batch), height, width)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        batch.generator = generator
        batch.latents = self.begin(noise.to(current_platform(args.device).device), batch)
        return batch
