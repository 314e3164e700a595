"""Few-step video from text, and maybe an image, with a Wan transformer that was distilled by distribution matching.

Sources: DMD2 (arXiv 2405.14867), section 4.4, backward simulation: the sampler predicts the data, and noises it again
for the next of a few fixed timesteps. FastVideo publishes such models as FastWan.
"""

from functools import partial
from typing import ClassVar

import torch

from fastvideo.configs.pipelines.wan import DMD_TIMESTEPS
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.wan import FastWanSampling
from fastvideo.configs.sample.wan_few_steps import WanTI2VDMDSampling
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.schedulers.flow import RenoisingFlow
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline, text_conditions
from fastvideo.pipelines.basic.wan.wan_ti2v_pipeline import first_frame, known_first_frame, with_first_frame
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
from fastvideo.utils import require


def renoise(
    scheduler: RenoisingFlow,
    prediction: torch.Tensor,
    timestep: torch.Tensor,
    latents: torch.Tensor,
    batch: ForwardBatch,
) -> torch.Tensor:
    """A step with noise that follows, from the same generator, that of the steps before; the last one needs none."""
    noise = None
    if not scheduler.last:
        drawn = torch.randn(latents.shape, generator=written(batch.generator, "generator"), dtype=torch.float32)
        noise = drawn.to(latents.device)
    return scheduler.renoise(prediction, latents, noise)


class WanDMDPipeline(WanPipeline):
    """Text to video in as many steps as the model was distilled for, without guidance."""

    sampling: ClassVar[type[SamplingParam]] = FastWanSampling

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.transformer = self.component("transformer", WanTransformer3DModel)
        self.vae = self.component("vae", AutoencoderKLWan)
        shift = self.pipeline_config.flow_shift or 8.0
        self.component("scheduler", Scheduler)  # the repo has one, of another sampler
        scheduler = RenoisingFlow(DMD_TIMESTEPS, shift)
        return (
            InputValidationStage(self.check_sampling, self.sampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(scheduler),
            LatentPreparationStage(self.latent_shape),
            ConditionStage(lambda batch, device: first_frame(self.vae, batch, device)),
            DenoisingStage(
                scheduler,
                pick=lambda timestep: self.transformer,
                conditions=text_conditions,
                prepare=known_first_frame,
                advance=partial(renoise, scheduler),
                finish=with_first_frame,
                uses=("generator", "condition"),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )

    def check_sampling(self, sampling: SamplingParam) -> None:
        """Sizes as of other models; the number of steps is the model's, and guidance is in its weights."""
        super().check_sampling(sampling)
        steps = len(DMD_TIMESTEPS)
        require(sampling.num_inference_steps == steps, "num_inference_steps", sampling.num_inference_steps,
                f"this model is distilled for {steps} steps, at {', '.join(map(str, DMD_TIMESTEPS))}",
                f"set it to {steps}")  # fmt: skip
        require(sampling.guidance_scale <= 1, "guidance_scale", sampling.guidance_scale,
                "this model has guidance in its weights", "set it to 1")  # fmt: skip


class WanTI2VDMDPipeline(WanDMDPipeline):
    """The same from text, and maybe an image, which is the first latent frame itself: at each step it has no noise."""

    _config_options: ClassVar[tuple[str, ...]] = ("expand_timesteps",)
    sampling = WanTI2VDMDSampling
