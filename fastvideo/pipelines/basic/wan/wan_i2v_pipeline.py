"""Wan 2.1 image to video, from a first or from a first and a last frame.

The reference that results are compared with is `diffusers/pipelines/wan/pipeline_wan_i2v.py`.
"""

from typing import Any

import torch

from fastvideo.configs.sample.wan import WanFLF2VSampling, WanI2V480PSampling
from fastvideo.layers.residence import ready
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.clip import CLIPVisionModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline, text_conditions
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch, written
from fastvideo.pipelines.stages import (
    ConditionStage,
    DecodingStage,
    DenoisingStage,
    ImageEncodingStage,
    InputValidationStage,
    LatentPreparationStage,
    PipelineStage,
    TextEncodingStage,
    TimestepPreparationStage,
)
from fastvideo.pipelines.stages.media import Fit, fit_image
from fastvideo.utils import require


def frame_condition(
    vae: AutoencoderKLWan, batch: ForwardBatch, device: torch.device, fit: Fit = fit_image
) -> torch.Tensor:
    """Mask and latents [1, 4 + z, t, h, w] of a clip that is grey but for the frames that are given.

    The mask has a channel for each of the four frames that a latent frame stands for, and is one where the frame is
    given; the first frame stands alone, and counts four times.
    """
    sampling, time = batch.sampling, vae.arch.scale_factor_temporal
    require(sampling.num_frames > 1 or batch.media.last_image is None, "num_frames", sampling.num_frames,
            "must be more than 1 with a last frame", f"try {time + 1}")  # fmt: skip
    given = ((0, batch.media.image), (sampling.num_frames - 1, batch.media.last_image))
    clip = torch.zeros(1, 3, sampling.num_frames, sampling.height, sampling.width)
    mask = torch.zeros(sampling.num_frames)
    for frame, image in given:
        if image is not None:
            clip[0, :, frame] = fit(image, sampling.height, sampling.width)
            mask[frame] = 1
    with ready(vae):
        latents = vae.encode(clip.to(device))
    channels = torch.cat((mask[:1].expand(time), mask[1:])).view(-1, time).mT
    spread = channels[None, :, :, None, None].expand(1, -1, -1, *latents.shape[3:])
    return torch.cat((spread.to(latents), latents), dim=1)


def beside_condition(
    latents: torch.Tensor, timestep: torch.Tensor, batch: ForwardBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """The condition's channels behind those of the latents."""
    condition = written(batch.condition, "condition").expand(latents.shape[0], -1, -1, -1, -1)
    return torch.cat((latents, condition), dim=1), timestep.expand(latents.shape[0])


class WanImageToVideoPipeline(WanPipeline):
    """Image and text to video with one Wan transformer, which also sees the image through a CLIP encoder."""

    _required_config_modules = (
        "tokenizer", "text_encoder", "image_processor", "image_encoder", "transformer", "vae", "scheduler",
    )  # fmt: skip

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.transformer = self.component("transformer", WanTransformer3DModel)
        self.vae = self.component("vae", AutoencoderKLWan)
        scheduler = self.component("scheduler", Scheduler)
        both = self.transformer.arch.pos_embed_seq_len is not None
        return (
            InputValidationStage(self.check_sampling, WanFLF2VSampling if both else WanI2V480PSampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            ImageEncodingStage(self.component("image_encoder", CLIPVisionModel), shown_images),
            TimestepPreparationStage(scheduler),
            LatentPreparationStage(self.latent_shape),
            ConditionStage(lambda batch, device: frame_condition(self.vae, batch, device)),
            DenoisingStage(
                scheduler,
                pick=lambda timestep: self.transformer,
                conditions=text_conditions,
                prepare=beside_condition,
                extras=image_states,
                uses=("condition", "image_embeds"),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )


def shown_images(batch: ForwardBatch) -> list[torch.Tensor]:
    """The first frame, and the last if there is one."""
    return [image for image in (batch.media.image, batch.media.last_image) if image is not None]


def image_states(batch: ForwardBatch) -> dict[str, Any]:
    """The image keyword of the Wan transformer."""
    return {"image": written(batch.image_embeds, "image_embeds").expand(batch.size, -1, -1)}
