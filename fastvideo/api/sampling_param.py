"""`SamplingParam` under the name that newer scripts import."""

from fastvideo.configs.sample.base import SamplingParam

__all__ = ["SamplingParam"]
