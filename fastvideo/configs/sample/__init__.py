"""Sampling parameters: what one request asks for."""

from fastvideo.configs.sample.base import SamplingParam

__all__ = ["SamplingParam"]
