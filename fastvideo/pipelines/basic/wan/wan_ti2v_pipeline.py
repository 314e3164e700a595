"""Wan 2.2 text and image to video with one transformer: an image is the first latent frame itself, without noise.

The references that results are compared with are `diffusers/pipelines/wan/pipeline_wan.py` and `pipeline_wan_i2v.py`,
both with `expand_timesteps`.
"""

from typing import ClassVar

import torch

from fastvideo.configs.sample.wan import WanTI2VSampling
from fastvideo.layers.residence import ready
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline, text_conditions
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
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
from fastvideo.pipelines.stages.media import fit_image


def with_first_frame(latents: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
    """`latents` [B, C, t, h, w] with the image, where there is one, as their first frame."""
    if batch.condition is None:
        return latents
    first = batch.condition.expand(latents.shape[0], -1, -1, -1, -1)
    return torch.cat((first, latents[:, :, 1:]), dim=2)


def known_first_frame(
    latents: torch.Tensor, timestep: torch.Tensor, batch: ForwardBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """The image in place of the first frame's latents, at timestep 0: it has no noise."""
    if batch.condition is None:
        return latents, timestep.expand(latents.shape[0])
    timesteps = timestep.repeat(latents.shape[2])
    timesteps[0] = 0
    return with_first_frame(latents, batch), timesteps.expand(latents.shape[0], -1)


def first_frame(vae: AutoencoderKLWan, batch: ForwardBatch, device: torch.device) -> torch.Tensor | None:
    """The latents [1, z, 1, h, w] of the image."""
    if batch.media.image is None:
        return None
    image = fit_image(batch.media.image, batch.sampling.height, batch.sampling.width)
    with ready(vae):
        return vae.encode(image[None, :, None].to(device))


class WanTI2VPipeline(WanPipeline):
    """Text, and maybe an image, to video."""

    _config_options: ClassVar[tuple[str, ...]] = ("expand_timesteps",)

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.transformer = self.component("transformer", WanTransformer3DModel)
        self.vae = self.component("vae", AutoencoderKLWan)
        scheduler = self.component("scheduler", Scheduler)
        return (
            InputValidationStage(self.check_sampling, WanTI2VSampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(scheduler),
            LatentPreparationStage(self.latent_shape),
            ConditionStage(lambda batch, device: first_frame(self.vae, batch, device)),
            DenoisingStage(
                scheduler,
                pick=lambda timestep: self.transformer,
                conditions=text_conditions,
                prepare=known_first_frame,
                finish=with_first_frame,
                uses=("condition",),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )
