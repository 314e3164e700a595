"""Lucy Edit: a video changed as a text says, by a Wan 2.2 transformer that sees the latents of the given video.

The reference that results are compared with is `diffusers/pipelines/lucy/pipeline_lucy_edit.py`.
"""

from typing import ClassVar

from fastvideo.configs.sample.wan import LucyEditSampling
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan_i2v_pipeline import beside_condition
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline, text_conditions
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


class LucyEditPipeline(WanPipeline):
    """Video and text to video; each step sees the whole given video."""

    # every token has the same timestep, so that expanding it changes nothing
    _config_options: ClassVar[tuple[str, ...]] = ("expand_timesteps",)

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.transformer = self.component("transformer", WanTransformer3DModel)
        self.vae = self.component("vae", AutoencoderKLWan)
        scheduler = self.component("scheduler", Scheduler)
        return (
            InputValidationStage(self.check_sampling, LucyEditSampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            TimestepPreparationStage(scheduler),
            LatentPreparationStage(self.latent_shape),
            ConditionStage(self.video_latents),
            DenoisingStage(
                scheduler,
                pick=lambda timestep: self.transformer,
                conditions=text_conditions,
                prepare=beside_condition,
                uses=("condition",),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )
