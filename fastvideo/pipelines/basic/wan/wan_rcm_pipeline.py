"""One to four steps with a Wan transformer that was distilled to a consistency model.

Source: rCM (arXiv 2510.08431), with `rcm/inference/wan2pt1_t2v_rcm_infer.py` and `wan2pt2_i2v_rcm_infer.py` of
NVlabs/rcm, whose weights they are. `diffusers` has no such sampler.
"""

from functools import partial

import torch

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.wan_few_steps import WanRCMI2VSampling, WanRCMSampling
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers.flow import TrigFlow
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan22_pipeline import Experts, Wan22ImageToVideoPipeline
from fastvideo.pipelines.basic.wan.wan_dmd_pipeline import renoise
from fastvideo.pipelines.basic.wan.wan_i2v_pipeline import beside_condition, frame_condition
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
from fastvideo.utils import require


def check_few(sampling: SamplingParam, scheduler: TrigFlow) -> None:
    """As many steps as there are angles, without guidance."""
    require(sampling.num_inference_steps <= scheduler.most, "num_inference_steps", sampling.num_inference_steps,
            f"this model is distilled for 1 to {scheduler.most} steps", f"set it to {scheduler.most}")  # fmt: skip
    require(sampling.guidance_scale <= 1, "guidance_scale", sampling.guidance_scale,
            "this model has guidance in its weights", "set it to 1")  # fmt: skip


def start(scheduler: TrigFlow, noise: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
    """The first latents: no data, and the noise of that level."""
    return scheduler.noised(torch.zeros_like(noise), noise)


class WanRCMPipeline(WanPipeline):
    """Text to video in 1 to 4 steps, without guidance."""

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.transformer = self.component("transformer", WanTransformer3DModel)
        self.vae = self.component("vae", AutoencoderKLWan)
        self.trigflow = self.component("scheduler", TrigFlow)
        return (
            InputValidationStage(self.check_sampling, WanRCMSampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(self.trigflow),
            LatentPreparationStage(self.latent_shape, partial(start, self.trigflow)),
            DenoisingStage(
                self.trigflow,
                pick=lambda timestep: self.transformer,
                conditions=text_conditions,
                advance=partial(renoise, self.trigflow),
                uses=("generator",),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )

    def check_sampling(self, sampling: SamplingParam) -> None:
        """Sizes as of other models; few steps, and no guidance."""
        super().check_sampling(sampling)
        check_few(sampling, self.trigflow)


class WanRCMImageToVideoPipeline(Wan22ImageToVideoPipeline):
    """The same from a first frame, with two transformers into which the distilled weights were merged."""

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.transformer = self.component("transformer", WanTransformer3DModel)
        self.vae = self.component("vae", AutoencoderKLWan)
        self.trigflow = self.component("scheduler", TrigFlow)
        self.scheduler = self.trigflow
        experts = Experts(self.transformer, self.component("transformer_2", WanTransformer3DModel), self.boundary())
        return (
            InputValidationStage(self.check_sampling, WanRCMI2VSampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(self.trigflow),
            LatentPreparationStage(self.latent_shape, partial(start, self.trigflow)),
            ConditionStage(lambda batch, device: frame_condition(self.vae, batch, device)),
            DenoisingStage(
                self.trigflow,
                pick=experts.pick,
                conditions=text_conditions,
                prepare=beside_condition,
                advance=partial(renoise, self.trigflow),
                uses=("condition", "generator"),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )

    def check_sampling(self, sampling: SamplingParam) -> None:
        """Sizes as of other models; few steps, and no guidance."""
        super().check_sampling(sampling)
        check_few(sampling, self.trigflow)
