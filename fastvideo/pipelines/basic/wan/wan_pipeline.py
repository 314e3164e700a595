"""Wan 2.1 text to video.

The reference that results are compared with is `diffusers/pipelines/wan/pipeline_wan.py`.
"""

import math
from typing import Any, ClassVar

import torch

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.layers.residence import ready
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.base import TextEmbeddings
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.stages import (
    DecodingStage,
    DenoisingStage,
    InputValidationStage,
    LatentPreparationStage,
    PipelineStage,
    TextEncodingStage,
    TimestepPreparationStage,
)


def text_conditions(text: TextEmbeddings) -> dict[str, Any]:
    """The text keywords of the Wan transformer."""
    return {"text": text.states, "text_padding": text.padding}


class WanPipeline(ComposedPipelineBase):
    """Text to video with one Wan transformer."""

    _required_config_modules: ClassVar[tuple[str, ...]] = (
        "tokenizer",
        "text_encoder",
        "transformer",
        "vae",
        "scheduler",
    )

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.transformer = self.component("transformer", WanTransformer3DModel)
        self.vae = self.component("vae", AutoencoderKLWan)
        scheduler = self.component("scheduler", Scheduler)
        return (
            InputValidationStage(self.check_sampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(scheduler),
            LatentPreparationStage(self.latent_shape),
            DenoisingStage(
                scheduler,
                pick=lambda timestep: self.transformer,
                conditions=text_conditions,
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )

    def preview(self, latents: torch.Tensor) -> torch.Tensor:
        """The first frame [B, 3, H, W] in [-1, 1] of `latents`."""
        with ready(self.vae):
            return self.vae.first_frame(latents)

    def check_sampling(self, sampling: SamplingParam) -> None:
        """Sizes must be whole patches of latents, frames 4k+1."""
        patch = math.lcm(*self.transformer.arch.patch_size[1:])
        sampling.check_sizes(patch * self.vae.arch.scale_factor_spatial, self.vae.arch.scale_factor_temporal)

    def latent_shape(self, sampling: SamplingParam) -> tuple[int, int, int, int]:
        """The VAE's grid: the first frame alone, then four at a time; 8x8 pixels."""
        time, space = self.vae.arch.scale_factor_temporal, self.vae.arch.scale_factor_spatial
        frames = (sampling.num_frames - 1) // time + 1
        return self.vae.arch.z_dim, frames, sampling.height // space, sampling.width // space
