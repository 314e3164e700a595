"""The executor for one device: the pipeline lives in this process, so its weights are held once."""

import gc
import threading

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import ModelEntry
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.repo import Repo
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.utils import resolve


class InProcessExecutor:
    """Loads the pipeline of `entry` with the weights of `repo` and runs it here."""

    def __init__(self, repo: Repo, entry: ModelEntry, args: FastVideoArgs, pipeline_config: PipelineConfig) -> None:
        pipeline_class: type[ComposedPipelineBase] = resolve(entry.pipeline)
        self._pipeline: ComposedPipelineBase | None = pipeline_class.from_repo(repo, args, pipeline_config)
        # a pipeline's scheduler remembers where in the schedule it is
        self._lock = threading.Lock()

    @property
    def attention_backend(self) -> str:
        """See `Executor`."""
        return self._running().attention_backend

    def execute(self, batch: ForwardBatch) -> ForwardBatch:
        """Run `batch`; a second thread waits until the first is done.

        Raises:
            RuntimeError: after `shutdown`.
        """
        with self._lock:
            return self._running().forward(batch)

    def shutdown(self) -> None:
        """Free the pipeline; waits for a batch that is running."""
        with self._lock:
            self._pipeline = None
        gc.collect()

    def _running(self) -> ComposedPipelineBase:
        if self._pipeline is None:
            raise RuntimeError("the executor was shut down")
        return self._pipeline
