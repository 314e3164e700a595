"""Wan 2.2 with two transformers: text to video, image to video, and VACE.

The references that results are compared with are `diffusers/pipelines/wan/pipeline_wan.py`, `pipeline_wan_i2v.py` and
`pipeline_wan_vace.py`.
"""

from typing import ClassVar

import torch

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.wan import Wan22I2VSampling, Wan22T2VSampling, Wan22VACESampling
from fastvideo.models.dits.wanvace import WanVACETransformer3DModel
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan_i2v_pipeline import beside_condition, frame_condition
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline, text_conditions
from fastvideo.pipelines.basic.wan.wan_vace_pipeline import WanVACEPipeline
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
from fastvideo.pipelines.stages.prediction import Guidance
from fastvideo.utils import require


class Experts:
    """Two transformers: one for timesteps from the boundary on, where there is much noise, and one for those below."""

    def __init__(self, high: WanTransformer3DModel, low: WanTransformer3DModel, boundary: float) -> None:
        """`boundary` is on the scheduler's scale."""
        self.high = high
        self.low = low
        self.boundary = boundary

    def pick(self, timestep: torch.Tensor) -> WanTransformer3DModel:
        """The one for `timestep`."""
        return self.high if timestep >= self.boundary else self.low

    def guide(self, sampling: SamplingParam, timestep: torch.Tensor) -> Guidance:
        """Each has a guidance scale of its own, or the low one that of the other."""
        second = sampling.guidance_scale if sampling.guidance_scale_2 is None else sampling.guidance_scale_2
        scale = sampling.guidance_scale if timestep >= self.boundary else second
        return Guidance(scale, sampling.guidance_rescale)


class Wan22Pipeline(WanPipeline):
    """Text to video with an expert for each half of the schedule."""

    _required_config_modules: ClassVar[tuple[str, ...]] = (*WanPipeline._required_config_modules, "transformer_2")
    _config_options: ClassVar[tuple[str, ...]] = ("boundary_ratio",)

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.transformer = self.component("transformer", WanTransformer3DModel)
        self.vae = self.component("vae", AutoencoderKLWan)
        self.scheduler = self.component("scheduler", Scheduler)
        experts = Experts(self.transformer, self.component("transformer_2", WanTransformer3DModel), self.boundary())
        return (
            InputValidationStage(self.check_sampling, Wan22T2VSampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(self.scheduler),
            LatentPreparationStage(self.latent_shape),
            DenoisingStage(
                self.scheduler,
                pick=experts.pick,
                conditions=text_conditions,
                guide=experts.guide,
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )

    def boundary(self) -> float:
        """The timestep from which on the first transformer runs.

        Raises:
            ValueError: `model_index.json` does not say it.
        """
        ratio = self.options.get("boundary_ratio")
        require(isinstance(ratio, float) and 0 < ratio < 1, "boundary_ratio", ratio,
                "model_index.json of a model with two transformers must have it, between 0 and 1",
                "download the repo again")  # fmt: skip
        assert isinstance(ratio, float)
        return ratio * float(self.scheduler.config["num_train_timesteps"])


class Wan22ImageToVideoPipeline(Wan22Pipeline):
    """The same from a first frame, and maybe a last one, whose latents stand beside those that are denoised."""

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.transformer = self.component("transformer", WanTransformer3DModel)
        self.vae = self.component("vae", AutoencoderKLWan)
        self.scheduler = self.component("scheduler", Scheduler)
        experts = Experts(self.transformer, self.component("transformer_2", WanTransformer3DModel), self.boundary())
        return (
            InputValidationStage(self.check_sampling, Wan22I2VSampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(self.scheduler),
            LatentPreparationStage(self.latent_shape),
            ConditionStage(lambda batch, device: frame_condition(self.vae, batch, device)),
            DenoisingStage(
                self.scheduler,
                pick=experts.pick,
                conditions=text_conditions,
                guide=experts.guide,
                prepare=beside_condition,
                uses=("condition",),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )


class Wan22VACEPipeline(WanVACEPipeline, Wan22Pipeline):
    """The same, steered by the control branches that both experts have."""

    _required_config_modules: ClassVar[tuple[str, ...]] = Wan22Pipeline._required_config_modules
    _config_options: ClassVar[tuple[str, ...]] = Wan22Pipeline._config_options

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.use_components()
        low = self.component("transformer_2", WanVACETransformer3DModel)
        require(low.control_layers == self.control_layers, "vace_layers", low.control_layers,
                f"transformer_2 must have as many control layers as transformer, {self.control_layers}",
                "download the repo again")  # fmt: skip
        experts = Experts(self.transformer, low, self.boundary())
        return self.steered_stages(Wan22VACESampling, experts.pick, experts.guide)
