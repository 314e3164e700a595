"""Wan 2.1 text to video, and video to video with the same model.

The references that results are compared with are `diffusers/pipelines/wan/pipeline_wan.py` and
`pipeline_wan_video2video.py`.
"""

import math
from typing import Any, ClassVar

import torch

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.wan import WanT2V480PSampling
from fastvideo.layers.residence import ready
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.base import TextEmbeddings
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch, written
from fastvideo.pipelines.stages import (
    ConditionStage,
    DecodingStage,
    DenoisingStage,
    InputValidationStage,
    LatentPreparationStage,
    PipelineStage,
    TextEncodingStage,
    TimestepPreparationStage,
)
from fastvideo.pipelines.stages.media import fit_video
from fastvideo.utils import require


def text_conditions(text: TextEmbeddings) -> dict[str, Any]:
    """The text keywords of the Wan transformer."""
    return {"text": text.states, "text_padding": text.padding}


STRENGTH = 0.8
"""Of video to video, unless the request says otherwise."""


def steps_left(sampling: SamplingParam) -> int:
    """Of the schedule, for a given video of which a share of `strength` is noised away (SDEdit, arXiv 2108.01073)."""
    strength = STRENGTH if sampling.strength is None else sampling.strength
    return min(int(sampling.num_inference_steps * strength), sampling.num_inference_steps)


class WanPipeline(ComposedPipelineBase):
    """Text to video with one Wan transformer. A given video is noised in part, and made anew from there."""

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
        self.scheduler = self.component("scheduler", Scheduler)
        return (
            InputValidationStage(self.check_sampling, WanT2V480PSampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(self.scheduler, self.skipped),
            ConditionStage(self.video_latents),
            LatentPreparationStage(self.latent_shape, self.begin, uses=("condition",)),
            DenoisingStage(
                self.scheduler,
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

    def video_latents(self, batch: ForwardBatch, device: torch.device) -> torch.Tensor:
        """The latents [1, z, t, h, w] of the given video."""
        video = fit_video(written(batch.media.video, "video"), batch.sampling.height, batch.sampling.width)
        with ready(self.vae):
            return self.vae.encode(video[None].to(device))

    def skipped(self, batch: ForwardBatch) -> int:
        """Steps that are left out as the given video takes their place."""
        if batch.media.video is None:
            return 0
        return batch.sampling.num_inference_steps - steps_left(batch.sampling)

    def begin(self, noise: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """The noise, in the given video if there is one."""
        return noise if batch.condition is None else self.scheduler.noised(batch.condition, noise)

    def check_sampling(self, sampling: SamplingParam) -> None:
        """Sizes must be whole patches of latents, frames 4k+1."""
        patch = math.lcm(*self.transformer.arch.patch_size[1:])
        sampling.check_sizes(patch * self.vae.arch.scale_factor_spatial, self.vae.arch.scale_factor_temporal)
        least = math.ceil(100 / sampling.num_inference_steps) / 100
        require(sampling.strength is None or steps_left(sampling) > 0, "strength", sampling.strength,
                f"leaves none of {sampling.num_inference_steps} steps", f"use at least {least:g}")  # fmt: skip

    def latent_shape(self, sampling: SamplingParam) -> tuple[int, int, int, int]:
        """The VAE's grid: the first frame alone, then four at a time; 8x8 pixels."""
        time, space = self.vae.arch.scale_factor_temporal, self.vae.arch.scale_factor_spatial
        frames = (sampling.num_frames - 1) // time + 1
        return self.vae.arch.z_dim, frames, sampling.height // space, sampling.width // space
