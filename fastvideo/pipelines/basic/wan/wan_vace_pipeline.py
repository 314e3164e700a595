"""Wan VACE: video made or edited with a control video, a mask and reference images.

The reference that results are compared with is `diffusers/pipelines/wan/pipeline_wan_vace.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.wan import WanVACESampling
from fastvideo.layers.residence import ready
from fastvideo.models.dits.wanvace import WanVACETransformer3DModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline, text_conditions
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
from fastvideo.pipelines.stages.denoising import Pick
from fastvideo.pipelines.stages.media import fit_image, fit_video
from fastvideo.pipelines.stages.prediction import Guide, same_guidance
from fastvideo.utils import require


def on_white(image: torch.Tensor, height: int, width: int, multiple: int) -> torch.Tensor:
    """`image` [H, W, 3], uint8 or in [0, 1], as large as it fits in the middle of a white one: [3, height, width] in
    [-1, 1]. As in the reference it is cut down to sides that are multiples of `multiple`, and then scaled bilinearly
    between neighbours."""
    sides = (max(multiple, side - side % multiple) for side in image.shape[:2])
    pixels = fit_image(image, *sides)[None]
    scale = min(height / pixels.shape[2], width / pixels.shape[3])
    size = (int(pixels.shape[2] * scale), int(pixels.shape[3] * scale))
    scaled = F.interpolate(pixels, size, mode="bilinear", align_corners=False)[0]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    canvas = torch.ones(3, height, width)
    canvas[:, top : top + size[0], left : left + size[1]] = scaled
    return canvas


def mask_channels(mask: torch.Tensor, space: int, frames: int) -> torch.Tensor:
    """`mask` [T, H, W] as [space * space, frames, H / space, W / space]: the pixels of a latent become channels."""
    cells = mask.unflatten(2, (-1, space)).unflatten(1, (-1, space)).permute(2, 4, 0, 1, 3).flatten(0, 1)
    return F.interpolate(cells[None], (frames, *cells.shape[2:]), mode="nearest-exact")[0]


class WanVACEPipeline(WanPipeline):
    """Text to video, steered by a control branch."""

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.use_components()
        return self.steered_stages(WanVACESampling, lambda timestep: self.transformer, same_guidance)

    def use_components(self) -> None:
        """Take what the stages need from the components."""
        transformer = self.component("transformer", WanVACETransformer3DModel)
        self.transformer, self.control_layers = transformer, transformer.control_layers
        self.vae = self.component("vae", AutoencoderKLWan)
        self.scheduler = self.component("scheduler", Scheduler)

    def steered_stages(self, model: type[SamplingParam], pick: Pick, guide: Guide) -> tuple[PipelineStage, ...]:
        """The stages, with the transformer and the guidance for a timestep."""
        return (
            InputValidationStage(self.check_sampling, model),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(self.scheduler),
            LatentPreparationStage(self.latent_shape, more_frames=lambda batch: len(batch.media.reference_images)),
            ConditionStage(self.control, always=True),
            DenoisingStage(
                self.scheduler,
                pick=pick,
                conditions=text_conditions,
                guide=guide,
                extras=self.steering,
                finish=lambda latents, batch: latents[:, :, len(batch.media.reference_images) :],
                uses=("condition",),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )

    def check_sampling(self, sampling: SamplingParam) -> None:
        """Sizes as of other models; a scale for all layers, or one for each."""
        super().check_sampling(sampling)
        scales, layers = sampling.conditioning_scale, self.control_layers
        require(not isinstance(scales, (list, tuple)) or len(scales) == layers, "conditioning_scale", scales,
                f"must be one number, or one for each of the {layers} control layers")  # fmt: skip

    def steering(self, batch: ForwardBatch) -> dict[str, Any]:
        """The control keywords of the transformer."""
        scales, layers = batch.sampling.conditioning_scale, self.control_layers
        each = list(scales) if isinstance(scales, (list, tuple)) else [1.0 if scales is None else scales] * layers
        control = written(batch.condition, "condition").expand(batch.size, -1, -1, -1, -1)
        return {"control": control, "control_scales": each}

    def control(self, batch: ForwardBatch, device: torch.device) -> torch.Tensor:
        """Control latents [1, 2 z + s * s, n + t, h, w]: the frames that are kept, those that are made anew, and the
        mask; the n reference images come first, the last of them in front, in the place of frames that are kept."""
        sampling, media = batch.sampling, batch.media
        size, space = (sampling.height, sampling.width), self.vae.arch.scale_factor_spatial
        video, mask = torch.zeros(3, sampling.num_frames, *size), torch.ones(3, sampling.num_frames, *size)
        if media.video is not None:
            video = fit_video(media.video, *size)
        if media.mask is not None:
            mask = ((fit_video(media.mask, *size) + 1) / 2).clamp(0, 1)
        anew = (mask > 0.5).float()
        with ready(self.vae):
            kept, made = (self.vae.encode(part[None].to(device)) for part in (video * (1 - anew), video * anew))
            latents = torch.cat((kept, made), dim=1)
            for image in media.reference_images:
                shown = self.vae.encode(on_white(image, *size, space)[None, :, None].to(device))
                latents = torch.cat((torch.cat((shown, torch.zeros_like(shown)), dim=1), latents), dim=2)
        cells = mask_channels(mask[0], space, kept.shape[2]).to(latents)
        cells = F.pad(cells, (0, 0, 0, 0, len(media.reference_images), 0))
        return torch.cat((latents, cells[None]), dim=1)
