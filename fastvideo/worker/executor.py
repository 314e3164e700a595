"""Where a pipeline runs. Every executor holds one pipeline and runs batches through it, one at a time."""

from typing import Protocol

from fastvideo.pipelines.pipeline_batch_info import ForwardBatch


class Executor(Protocol):
    """Runs batches somewhere."""

    @property
    def attention_backend(self) -> str:
        """The name of the backend that the model's full-sequence attention runs on."""

    def execute(self, batch: ForwardBatch) -> ForwardBatch:
        """`batch` with its video; raises what the pipeline raises, and can be used again afterwards."""

    def shutdown(self) -> None:
        """Free the pipeline and whatever runs it. Doing it twice is the same as once."""
