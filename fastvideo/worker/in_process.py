"""The executor for one device: the pipeline lives in this process, so its weights are held once."""

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import ModelEntry
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.lora import LoraSet
from fastvideo.models.loader.repo import Repo
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase, Ended
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.platforms import current_platform
from fastvideo.platforms.base import Platform
from fastvideo.utils import resolve

T = TypeVar("T")


class InProcessExecutor:
    """Loads the pipeline of `entry` with the weights of `repo` and runs it here."""

    def __init__(self, repo: Repo, entry: ModelEntry, args: FastVideoArgs, pipeline_config: PipelineConfig) -> None:
        pipeline_class: type[ComposedPipelineBase] = resolve(entry.pipeline)
        self._pipeline: ComposedPipelineBase | None = pipeline_class.from_repo(repo, args, pipeline_config)
        self._platform = current_platform(args.device)
        # a pipeline's scheduler remembers where in the schedule it is
        self._lock = threading.Lock()

    @property
    def attention_backend(self) -> str:
        """See `Executor`."""
        return self._running().attention_backend

    @property
    def threads(self) -> int:
        """See `Executor`."""
        return torch.get_num_threads()

    def execute(self, batch: ForwardBatch) -> ForwardBatch:
        """Run `batch`; a second thread waits until the first is done.

        Raises:
            RuntimeError: after `shutdown`.
        """
        with self._lock:
            pipeline = self._running()
            self._platform.reset_peak_memory()
            batch = pipeline.forward(batch)
            self._platform.synchronize()
            batch.peak_memory = self._platform.peak_memory()
            return batch

    def execute_together(self, batches: Sequence[ForwardBatch], ended: Ended) -> None:
        """See `Executor`."""
        with self._lock:
            pipeline = self._running()
            self._platform.reset_peak_memory()
            pipeline.forward_together(batches, partial(told, self._platform, ended))

    def stream(self, batch: ForwardBatch) -> Iterator[torch.Tensor]:
        """The video of `batch` chunk by chunk, as `ComposedPipelineBase.stream` has it; others wait until it ends.

        Raises:
            RuntimeError: after `shutdown`.
        """
        with self._lock:
            yield from self._running().stream(batch)

    def adapt(self, loras: LoraSet) -> None:
        """See `Executor`."""
        with self._lock:
            self._running().adapt(loras)

    def on_first(self, make: Callable[[], T]) -> T:
        """See `Executor`; there is one process."""
        return make()

    def shutdown(self) -> None:
        """Free the pipeline; waits for a batch that is running."""
        with self._lock:
            self._pipeline = None
        gc.collect()

    def _running(self) -> ComposedPipelineBase:
        if self._pipeline is None:
            raise RuntimeError("the executor was shut down")
        return self._pipeline


def told(platform: Platform, ended: Ended, number: int, outcome: ForwardBatch | Exception) -> None:
    """Tell `ended` of a request that ran together with others, with the peak memory of all of them."""
    platform.synchronize()
    if isinstance(outcome, ForwardBatch):
        outcome.peak_memory = max(outcome.peak_memory, platform.peak_memory())
    ended(number, outcome)
