"""Sampling defaults of Wan models that were distilled to few steps. Sources: the model cards, and for rCM the defaults
of `rcm/inference` of NVlabs/rcm."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from fastvideo.configs.sample.base import SamplingParam


@dataclass(kw_only=True)
class WanRCMSampling(SamplingParam):
    """rCM-Wan2.1-T2V."""

    num_frames: int = 77
    num_inference_steps: int = 4
    guidance_scale: float = 1.0


@dataclass(kw_only=True)
class WanRCMI2VSampling(WanRCMSampling):
    """rCM-Wan2.2-I2V-A14B."""

    needs: ClassVar[tuple[str, ...]] = ("image",)

    height: int = 720
    width: int = 1280
    num_frames: int = 81


@dataclass(kw_only=True)
class WanTI2VDMDSampling(SamplingParam):
    """FastWan2.2-TI2V-5B."""

    takes: ClassVar[tuple[str, ...]] = ("image",)

    height: int = 704
    width: int = 1280
    num_frames: int = 121
    fps: int = 24
    num_inference_steps: int = 3
    guidance_scale: float = 1.0


@dataclass(kw_only=True)
class SFWanI2VSampling(SamplingParam):
    """A causal model whose first frame is a chunk of its own."""

    takes: ClassVar[tuple[str, ...]] = ("image", "start_video")
    sized_by: ClassVar[tuple[str, ...]] = ("image", "start_video")

    num_frames: int = 85
    num_inference_steps: int = 4
    guidance_scale: float = 1.0

    @classmethod
    def check_together(cls, sampling: SamplingParam, media: Collection[str]) -> None:
        """See `SamplingParam`."""
        if {"image", "start_video"} <= set(media):
            raise ValueError("start_video: the video begins with the image already; give one of them")
