"""Wan 2.2 Fun, with two transformers or with one and the VAE of 5B: from first and last frames, and after a control
video.

Sources: `videox_fun/pipeline/pipeline_wan2_2_fun_inpaint.py` and `pipeline_wan2_2_fun_control.py` of
aigc-apps/VideoX-Fun, which publishes the models, with `examples/wan2.2_fun`. `diffusers` has neither.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.wan_fun import (
    Wan22FunControlSampling,
    Wan22FunInPSampling,
    WanTI2VFunControlSampling,
    WanTI2VFunInPSampling,
)
from fastvideo.models.dits.wanfun import WanFunTransformer3DModel
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan22_pipeline import Experts, Wan22Pipeline
from fastvideo.pipelines.basic.wan.wan_fun_pipeline import (
    check_channels,
    check_reference,
    frames_or_none,
    image_or_none,
    reference_of,
    reference_states,
    video_or_none,
    with_reference,
)
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
from fastvideo.pipelines.stages.prediction import Guide, same_guidance

HIGH_COMPRESSION = 16
"""Pixels a side of a latent from which on a given first frame is not made anew."""


class Wan22FunInpaintPipeline(Wan22Pipeline):
    """Text, and maybe a first or a first and a last frame, to video, with an expert for each half of the schedule."""

    sampling: ClassVar[type[SamplingParam]] = Wan22FunInPSampling
    controlled: ClassVar[bool] = False

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.fun = self.component("transformer", WanFunTransformer3DModel)
        self.transformer = self.fun
        self.vae = self.component("vae", AutoencoderKLWan)
        self.scheduler = self.component("scheduler", Scheduler)
        z, shown = self.vae.arch.z_dim, self.vae.arch.scale_factor_temporal
        check_channels(self.fun, z, z + shown + z * self.controlled)
        pick, guide = self.chosen()
        return (
            InputValidationStage(self.check_sampling, self.sampling, check_reference),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(self.scheduler),
            LatentPreparationStage(self.latent_shape),
            ConditionStage(self.condition, always=True),
            DenoisingStage(
                self.scheduler,
                pick=pick,
                conditions=text_conditions,
                guide=guide,
                prepare=self.prepare,
                extras=self.states,
                finish=self.finish,
                uses=("condition",),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )

    def chosen(self) -> tuple[Callable[[torch.Tensor], WanTransformer3DModel], Guide]:
        """Which transformer runs at a timestep, and with which guidance."""
        experts = Experts(self.fun, self.component("transformer_2", WanFunTransformer3DModel), self.boundary())
        return experts.pick, experts.guide

    def condition(self, batch: ForwardBatch, device: torch.device) -> torch.Tensor:
        """Latents of the control video where there may be one, mask and latents of the first and last frame; the
        reference may be a frame before it."""
        grid = self.latent_shape(batch.sampling)[1:]
        parts = frames_or_none(self.vae, grid, batch, device)
        if self.controlled:
            parts = torch.cat((video_or_none(self.vae, grid, batch, device), parts), dim=1)
        if not self.fun.arch.add_ref_conv:
            return parts
        return with_reference(parts, image_or_none(self.vae, reference_of(batch.media), batch, device))

    def states(self, batch: ForwardBatch) -> dict[str, Any]:
        """The reference keyword of the transformer, where it has one."""
        return reference_states(self.vae.arch.z_dim, batch) if self.fun.arch.add_ref_conv else {}

    def keeps_first_frame(self, batch: ForwardBatch) -> bool:
        """Whether the first frame is the given one, without noise."""
        return batch.media.image is not None and self.vae.arch.scale_factor_spatial >= HIGH_COMPRESSION

    def shown(self, batch: ForwardBatch) -> torch.Tensor:
        """The condition without the frame of the reference."""
        return written(batch.condition, "condition")[:, :, int(self.fun.arch.add_ref_conv) :]

    def prepare(
        self, latents: torch.Tensor, timestep: torch.Tensor, batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The condition's channels behind those of the latents; a first frame that is kept is at timestep 0."""
        condition = self.shown(batch).expand(latents.shape[0], -1, -1, -1, -1)
        times = timestep.expand(latents.shape[0])
        if self.keeps_first_frame(batch):
            frames = timestep.repeat(latents.shape[2])
            frames[0] = 0
            times = frames.expand(latents.shape[0], -1)
        return torch.cat((self.finish(latents, batch), condition), dim=1), times

    def finish(self, latents: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """`latents` with the first frame that is kept, if one is."""
        if not self.keeps_first_frame(batch):
            return latents
        first = self.shown(batch)[:, -self.vae.arch.z_dim :, :1].expand(latents.shape[0], -1, -1, -1, -1)
        return torch.cat((first, latents[:, :, 1:]), dim=2)


class Wan22FunControlPipeline(Wan22FunInpaintPipeline):
    """The same after a control video, in the look of a reference image."""

    sampling = Wan22FunControlSampling
    controlled = True


class WanTI2VFunInpaintPipeline(Wan22FunInpaintPipeline):
    """Text, and maybe a first or a first and a last frame, to video with one transformer."""

    _required_config_modules = WanPipeline._required_config_modules
    _config_options = ()
    sampling = WanTI2VFunInPSampling

    def chosen(self) -> tuple[Callable[[torch.Tensor], WanTransformer3DModel], Guide]:
        return lambda timestep: self.transformer, same_guidance


class WanTI2VFunControlPipeline(WanTI2VFunInpaintPipeline):
    """The same after a control video, in the look of a reference image."""

    sampling = WanTI2VFunControlSampling
    controlled = True
