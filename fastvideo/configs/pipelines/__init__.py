"""Pipeline configs: wiring and precision of a pipeline."""

from fastvideo.configs.pipelines.base import PipelineConfig

__all__ = ["PipelineConfig"]
