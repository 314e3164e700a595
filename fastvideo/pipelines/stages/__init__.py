"""The stages that pipelines are made of."""

from fastvideo.pipelines.stages.base import PipelineStage
from fastvideo.pipelines.stages.decoding import DecodingStage
from fastvideo.pipelines.stages.denoising import DenoisingStage
from fastvideo.pipelines.stages.input_validation import InputValidationStage
from fastvideo.pipelines.stages.latent_preparation import LatentPreparationStage
from fastvideo.pipelines.stages.media import ConditionStage, ImageEncodingStage, SteeringStage
from fastvideo.pipelines.stages.rollout import RolloutStage
from fastvideo.pipelines.stages.segments import SegmentsStage
from fastvideo.pipelines.stages.text_encoding import TextEncodingStage
from fastvideo.pipelines.stages.timestep_preparation import TimestepPreparationStage

__all__ = [
    "ConditionStage",
    "DecodingStage",
    "DenoisingStage",
    "ImageEncodingStage",
    "InputValidationStage",
    "LatentPreparationStage",
    "PipelineStage",
    "RolloutStage",
    "SegmentsStage",
    "SteeringStage",
    "TextEncodingStage",
    "TimestepPreparationStage",
]
