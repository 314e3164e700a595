"""Sampling defaults of the Wan models of VideoX-Fun. Source: `examples/wan2.1_fun` and `examples/wan2.2_fun` there."""

from dataclasses import dataclass
from typing import ClassVar

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.wan import WAN21_NEGATIVE_PROMPT


@dataclass(kw_only=True)
class WanFunInPSampling(SamplingParam):
    """Wan2.1-Fun-*-InP."""

    takes: ClassVar[tuple[str, ...]] = ("image", "last_image")

    negative_prompt: str = WAN21_NEGATIVE_PROMPT
    guidance_scale: float = 6.0


@dataclass(kw_only=True)
class WanFunControlSampling(WanFunInPSampling):
    """Wan2.1-Fun-V1.1-*-Control."""

    takes: ClassVar[tuple[str, ...]] = ("video", "image", "reference_images")


@dataclass(kw_only=True)
class WanFunPlainControlSampling(WanFunInPSampling):
    """Wan2.1-Fun-*-Control, which has no place for a reference image."""

    takes: ClassVar[tuple[str, ...]] = ("video", "image")


@dataclass(kw_only=True)
class Wan22FunInPSampling(WanFunInPSampling):
    """Wan2.2-Fun-A14B-InP."""

    takes: ClassVar[tuple[str, ...]] = ("image", "last_image", "guidance_scale_2")


@dataclass(kw_only=True)
class Wan22FunControlSampling(WanFunInPSampling):
    """Wan2.2-Fun-A14B-Control."""

    takes: ClassVar[tuple[str, ...]] = ("video", "image", "last_image", "reference_images", "guidance_scale_2")


@dataclass(kw_only=True)
class WanTI2VFunInPSampling(WanFunInPSampling):
    """Wan2.2-Fun-5B-InP."""

    height: int = 704
    width: int = 1280
    num_frames: int = 121
    fps: int = 24


@dataclass(kw_only=True)
class WanTI2VFunControlSampling(WanTI2VFunInPSampling):
    """Wan2.2-Fun-5B-Control."""

    takes: ClassVar[tuple[str, ...]] = ("video", "image", "last_image", "reference_images")
