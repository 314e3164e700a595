"""Wan 2.1 Fun: video from a first and maybe a last frame, or from neither (InP); and after a control video (Control).

Sources: `videox_fun/pipeline/pipeline_wan_fun_inpaint.py` and `pipeline_wan_fun_control.py` of aigc-apps/VideoX-Fun,
which publishes the models, with `examples/wan2.1_fun`. `diffusers` has neither.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from fastvideo.configs.sample.wan_fun import WanFunControlSampling, WanFunInPSampling, WanFunPlainControlSampling
from fastvideo.layers.residence import ready
from fastvideo.models.dits.wanfun import WanFunTransformer3DModel
from fastvideo.models.encoders.clip import CLIPVisionModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan_i2v_pipeline import (
    WanImageToVideoPipeline,
    beside_condition,
    frame_condition,
    image_states,
)
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline, text_conditions
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch, MediaInputs, written
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
from fastvideo.pipelines.stages.media import scaled, signed
from fastvideo.utils import require

BICUBIC = Image.Resampling.BICUBIC


def fit_cubic(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`image` [H, W, 3] as [3, height, width] in [-1, 1], by Pillow's bicubic filter."""
    return signed(scaled(image, height, width, BICUBIC))


def fit_linear(video: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`video` [T, H, W, 3] as [3, T, height, width] in [-1, 1], bilinearly between neighbours, as OpenCV does it."""
    planes = F.interpolate(video.movedim(-1, 1).float(), (height, width), mode="bilinear", align_corners=False)
    if video.dtype == torch.uint8:
        planes = planes.round() / 255
    return 2 * planes.movedim(1, 0) - 1


def squeezing(encoder: CLIPVisionModel) -> CLIPVisionModel:
    """`encoder`, which from now on sees all of an image, whatever its proportions."""
    encoder.processor = dataclasses.replace(encoder.processor, whole=True)
    return encoder


def frames_or_none(
    vae: AutoencoderKLWan, grid: tuple[int, int, int], batch: ForwardBatch, device: torch.device
) -> torch.Tensor:
    """Mask and latents [1, 4 + z, t, h, w] of the first and last frame; all of it is zero where neither is given, and
    not what a VAE makes of a grey clip. `grid` is t, h, w."""
    if batch.media.image is not None:
        return frame_condition(vae, batch, device, fit=fit_cubic)
    return torch.zeros(1, vae.arch.scale_factor_temporal + vae.arch.z_dim, *grid, device=device)


def video_or_none(
    vae: AutoencoderKLWan, grid: tuple[int, int, int], batch: ForwardBatch, device: torch.device
) -> torch.Tensor:
    """Latents [1, z, t, h, w] of the control video; zeros without one."""
    if batch.media.video is None:
        return torch.zeros(1, vae.arch.z_dim, *grid, device=device)
    video = fit_linear(batch.media.video, batch.sampling.height, batch.sampling.width)
    with ready(vae):
        return vae.encode(video[None].to(device))


def image_or_none(
    vae: AutoencoderKLWan, image: torch.Tensor | None, batch: ForwardBatch, device: torch.device
) -> torch.Tensor:
    """Latents [1, z, 1, h, w] of `image`; zeros without one."""
    height, width, space = batch.sampling.height, batch.sampling.width, vae.arch.scale_factor_spatial
    if image is None:
        return torch.zeros(1, vae.arch.z_dim, 1, height // space, width // space, device=device)
    with ready(vae):
        return vae.encode(fit_cubic(image, height, width)[None, :, None].to(device))


def reference_of(media: MediaInputs) -> torch.Tensor | None:
    """The reference image, if there is one."""
    return media.reference_images[0] if media.reference_images else None


def check_reference(media: MediaInputs) -> None:
    """One reference image at most."""
    count = len(media.reference_images)
    require(count <= 1, "reference_images", count, "this model takes one", "choose one of them")


def with_reference(condition: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """`reference` [1, z, 1, h, w] as the first frame of `condition` [1, C, t, h, w], in its first channels."""
    return torch.cat((F.pad(reference, (0, 0, 0, 0, 0, 0, 0, condition.shape[1] - reference.shape[1])), condition), 2)


def reference_states(channels: int, batch: ForwardBatch) -> dict[str, Any]:
    """The reference keyword of the transformer, of `channels`, from the first frame of the condition."""
    condition = written(batch.condition, "condition")
    return {"reference": condition[:, :channels, 0].expand(batch.size, -1, -1, -1)}


def after_reference(
    latents: torch.Tensor, timestep: torch.Tensor, batch: ForwardBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """The condition's channels behind those of the latents, without the frame of the reference."""
    condition = written(batch.condition, "condition")[:, :, 1:].expand(latents.shape[0], -1, -1, -1, -1)
    return torch.cat((latents, condition), dim=1), timestep.expand(latents.shape[0])


def check_channels(transformer: WanFunTransformer3DModel, latents: int, condition: int) -> None:
    """The transformer is made for latents with such a condition behind them, or it is of another model."""
    channels = transformer.arch.in_channels
    require(channels == latents + condition, "in_channels", channels,
            f"this pipeline has {latents} channels of latents and {condition} of conditions",
            "check that the weights are of this kind of model")  # fmt: skip


class WanFunInpaintPipeline(WanPipeline):
    """Text, and maybe a first or a first and a last frame, to video."""

    _required_config_modules = WanImageToVideoPipeline._required_config_modules

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.transformer = self.component("transformer", WanFunTransformer3DModel)
        self.vae = self.component("vae", AutoencoderKLWan)
        check_channels(self.transformer, self.vae.arch.z_dim, self.vae.arch.z_dim + self.vae.arch.scale_factor_temporal)
        scheduler = self.component("scheduler", Scheduler)
        return (
            InputValidationStage(self.check_sampling, WanFunInPSampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            ImageEncodingStage(squeezing(self.component("image_encoder", CLIPVisionModel)), self.shown),
            TimestepPreparationStage(scheduler),
            LatentPreparationStage(self.latent_shape),
            ConditionStage(self.frames, always=True),
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

    def shown(self, batch: ForwardBatch) -> list[torch.Tensor]:
        """The first frame as the video has it."""
        image, size = batch.media.image, (batch.sampling.height, batch.sampling.width)
        return [] if image is None else [scaled(image, *size, BICUBIC)]

    def frames(self, batch: ForwardBatch, device: torch.device) -> torch.Tensor:
        """Mask and latents of the first and last frame."""
        return frames_or_none(self.vae, self.latent_shape(batch.sampling)[1:], batch, device)


class WanFunControlPipeline(WanPipeline):
    """Text to video after a control video (poses, depth, edges), from a first frame, in the look of a reference."""

    _required_config_modules = WanImageToVideoPipeline._required_config_modules

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.fun = self.component("transformer", WanFunTransformer3DModel)
        self.transformer = self.fun
        self.vae = self.component("vae", AutoencoderKLWan)
        check_channels(self.fun, self.vae.arch.z_dim, 2 * self.vae.arch.z_dim)
        referred = self.fun.arch.add_ref_conv
        sampling = WanFunControlSampling if referred else WanFunPlainControlSampling
        scheduler = self.component("scheduler", Scheduler)
        return (
            InputValidationStage(self.check_sampling, sampling, check_reference),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            ImageEncodingStage(squeezing(self.component("image_encoder", CLIPVisionModel)), self.shown),
            TimestepPreparationStage(scheduler),
            LatentPreparationStage(self.latent_shape),
            ConditionStage(self.control, always=True),
            DenoisingStage(
                scheduler,
                pick=lambda timestep: self.transformer,
                conditions=text_conditions,
                prepare=after_reference if referred else beside_condition,
                extras=self.states,
                uses=("condition", "image_embeds"),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )

    def shown(self, batch: ForwardBatch) -> list[torch.Tensor]:
        """The reference image, or else the first frame."""
        reference = reference_of(batch.media)
        image = batch.media.image if reference is None else reference
        return [] if image is None else [image]

    def states(self, batch: ForwardBatch) -> dict[str, Any]:
        """The image keywords of the transformer."""
        if not self.fun.arch.add_ref_conv:
            return image_states(batch)
        return image_states(batch) | reference_states(self.vae.arch.z_dim, batch)

    def control(self, batch: ForwardBatch, device: torch.device) -> torch.Tensor:
        """Latents of the control video and behind them of the first frame; the reference may be a frame before it."""
        grid = self.latent_shape(batch.sampling)[1:]
        first = torch.zeros(1, self.vae.arch.z_dim, *grid, device=device)
        if grid[0] > 1:  # a single frame is made anew, whatever is given
            first[:, :, :1] = image_or_none(self.vae, batch.media.image, batch, device)
        condition = torch.cat((video_or_none(self.vae, grid, batch, device), first), dim=1)
        if not self.fun.arch.add_ref_conv:
            return condition
        return with_reference(condition, image_or_none(self.vae, reference_of(batch.media), batch, device))
