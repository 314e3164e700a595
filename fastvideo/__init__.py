"""Text to video: from a Diffusers-style model repo to a video file."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastvideo.configs.pipelines.base import PipelineConfig
    from fastvideo.configs.sample.base import SamplingParam
    from fastvideo.entrypoints.video_generator import VideoGenerator

__version__ = "0.1.0"

__all__ = ["PipelineConfig", "SamplingParam", "VideoGenerator", "__version__"]

_EXPORTS = {
    "PipelineConfig": "fastvideo.configs.pipelines.base",
    "SamplingParam": "fastvideo.configs.sample.base",
    "VideoGenerator": "fastvideo.entrypoints.video_generator",
}


def __getattr__(name: str) -> Any:
    # imported on use: the command line and the configs answer without torch
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
