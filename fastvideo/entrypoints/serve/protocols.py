"""What a server needs of the model that it runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.serve.planner import Model
from fastvideo.pipelines.pipeline_batch_info import CancelToken, Progress


class Generator(Model, Protocol):
    """The part of `VideoGenerator` that a server uses."""

    def generate_video(
        self, prompt: str, sampling_param: SamplingParam | None = None, *,
        progress: Callable[[Progress], None] | None = None, cancel: CancelToken | None = None, preview_every: int = 0,
        **fields: Any,
    ) -> Any:  # fmt: skip
        """See `VideoGenerator`."""

    @property
    def batches(self) -> bool:
        """See `VideoGenerator`."""

    def generate_videos(
        self, requests: Sequence[Mapping[str, Any]], *, return_exceptions: bool = False,
        on_result: Callable[[int, Any], None] | None = None,
    ) -> Any:  # fmt: skip
        """See `VideoGenerator`."""

    @property
    def active_loras(self) -> Mapping[str, float]:
        """See `VideoGenerator`."""

    def set_lora_adapter(self, lora_nickname: str, lora_path: str | None = None, strength: float = 1.0,
                         accumulate: bool = False) -> Any:  # fmt: skip
        """See `VideoGenerator`."""

    def use_lora_adapters(self, strengths: Mapping[str, float]) -> None:
        """See `VideoGenerator`."""

    def shutdown(self) -> None:
        """See `VideoGenerator`."""
