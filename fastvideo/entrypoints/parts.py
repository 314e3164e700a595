"""What the groups of methods that make up a generator need of it."""

from abc import ABC, abstractmethod
from typing import Any

from fastvideo.configs.registry import ModelEntry
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.pipelines.pipeline_batch_info import MediaInputs
from fastvideo.worker.executor import Executor


class RequestMethods(ABC):
    """Methods of a generator that take requests."""

    entry: ModelEntry

    @abstractmethod
    def _running(self) -> Executor:
        """Where the pipeline runs; raises a `RuntimeError` after `shutdown`."""

    @abstractmethod
    def _checked(
        self, prompt: str, sampling_param: SamplingParam | None, fields: dict[str, Any]
    ) -> tuple[SamplingParam, MediaInputs]:
        """Refuse what the model cannot run; the sampling parameters that a request comes to, and its media."""
