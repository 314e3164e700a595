"""The frames of a video while it is made."""

import dataclasses
import threading
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastvideo.configs.registry import MODELS
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.parts import RequestMethods
from fastvideo.entrypoints.result import to_frames
from fastvideo.entrypoints.watch import control_of
from fastvideo.pipelines.pipeline_batch_info import CancelToken, Control, ForwardBatch, Progress
from fastvideo.utils import require
from fastvideo.worker.in_process import InProcessExecutor

UNUSED = ("output_path", "save_video", "return_frames")
"""Fields of `SamplingParam` that say what becomes of a whole video."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoChunk:
    """Some frames of a video, which follow those of the chunk before."""

    index: int
    """Of the chunk."""
    start: int
    """Of its first frame in the video."""
    frames: npt.NDArray[np.uint8]
    """[T, H, W, 3], RGB."""


class Turn:
    """A lock that tells a thread that holds it so, where a plain one would have it wait for itself for ever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @property
    def mine(self) -> bool:
        """Whether this thread holds it."""
        return self._holder == threading.get_ident()

    def __enter__(self) -> None:
        if self.mine:
            raise RuntimeError(
                "this thread has a stream of the generator open: take it to its end, or close() it, first"
            )
        self._lock.acquire()
        self._holder = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._holder = None
        self._lock.release()


class StreamMethods(RequestMethods):
    """The methods of a generator that are about frames before the video is whole."""

    _turn: Turn
    _open: "weakref.ref[Generator[VideoChunk, None, None]] | None" = None
    """The last stream."""

    def stream(
        self,
        prompt: str,
        sampling_param: SamplingParam | None = None,
        *,
        progress: Callable[[Progress], None] | None = None,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
        **fields: Any,
    ) -> Generator[VideoChunk, None, None]:
        """Make a video of `prompt`, and hand out its frames chunk by chunk: those that `generate_video` makes.

        The next chunk is computed when it is asked for. Memory does not grow with the length of the video. Other calls
        wait until the stream ends: at the last chunk, or at `close()`.

        Args:
            prompt: what to show.
            sampling_param: what to sample, not changed here; the model's defaults when None.
            progress: called with each step.
            cancel: a token whose `cancel()`, from any thread, stops the stream at its next step.
            preview_every: steps from one preview in `progress` to the next; 0 makes none.
            fields: fields of `SamplingParam` that beat those of `sampling_param`, and the media of `generate_video`,
                such as `image`; not those about files and results.

        Returns:
            A generator of `VideoChunk`; each has its `index`, the number `start` of its first frame, and `frames`
            [T, H, W, 3] uint8.

        Raises:
            ValueError: the model makes all frames at once, or what `generate_video` refuses; nothing was computed.
            Cancelled: from the generator, when `cancel` was cancelled, as is what else `generate_video` raises.
            RuntimeError: from the generator, when another stream of this thread is open.
        """
        executor = self._running()
        for name in UNUSED:
            require(name not in fields, name, fields.get(name), "does nothing here: a stream hands out its frames",
                    "leave it out, or use generate_video")  # fmt: skip
        if not self.entry.streams:
            able = ", ".join(name for entry in MODELS if entry.streams for name in entry.model_ids)
            raise ValueError(f"stream: {self.entry.name} makes all frames at once; use generate_video, or {able}")
        assert isinstance(executor, InProcessExecutor), "models that stream run on one device"
        control = control_of(progress, cancel, preview_every)
        sampling, media = self._checked(prompt, sampling_param, fields)
        count = sampling.num_videos_per_prompt
        require(count == 1, "num_videos_per_prompt", count, "a stream is of one video", "set it to 1")
        batch = ForwardBatch(
            prompts=[prompt], negative_prompts=[sampling.negative_prompt], sampling=sampling, control=control,
            media=media,
        )  # fmt: skip
        chunks = self._chunks(executor, batch)
        self._open = weakref.ref(chunks)
        return chunks

    def _shown(
        self,
        control: Control,
        on_chunk: Callable[[VideoChunk], None] | None,
        prompts: list[str],
        sampling: SamplingParam,
    ) -> Control:
        """`control`, by which `on_chunk` gets each chunk of the one video."""
        if on_chunk is None:
            return control
        if not self.entry.streams:
            raise ValueError(f"on_chunk: {self.entry.name} makes all frames at once; leave it out")
        videos = len(prompts) * sampling.num_videos_per_prompt
        require(videos == 1, "on_chunk", "...", f"is for one video, and {videos} are asked for", "ask for one")
        index = start = 0

        def show(video: torch.Tensor) -> None:
            nonlocal index, start
            frames = np.stack(to_frames(video[0]))
            on_chunk(VideoChunk(index=index, start=start, frames=frames))
            index, start = index + 1, start + len(frames)

        return dataclasses.replace(control, show=show)

    def _chunks(self, executor: InProcessExecutor, batch: ForwardBatch) -> Generator[VideoChunk, None, None]:
        start = 0
        with self._turn:
            for index, video in enumerate(executor.stream(batch)):
                frames = np.stack(to_frames(video[0]))
                yield VideoChunk(index=index, start=start, frames=frames)
                start += len(frames)

    def _end_stream(self) -> None:
        """Close a stream of this thread, for which a shutdown would wait for ever."""
        chunks = None if self._open is None else self._open()
        if chunks is not None and self._turn.mine:
            chunks.close()
