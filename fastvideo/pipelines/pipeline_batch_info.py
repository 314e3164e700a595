"""What flows between stages: the request, how to stop it and watch it, and what the stages have made of it so far."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from fastvideo.configs.sample.base import MEDIA, SamplingParam
from fastvideo.models.encoders.base import TextEmbeddings

T = TypeVar("T")
Picture = npt.NDArray[np.uint8]
"""[H, W, 3] RGB."""


class Cancelled(Exception):  # noqa: N818 - the outcome that was asked for, not an error
    """The request was cancelled before it was done."""


class CancelToken:
    """Stops a request at its next step. Any thread, or a signal handler, may call `cancel`."""

    def __init__(self) -> None:
        self._cancelled = False

    def cancel(self) -> None:
        """Ask the request to stop; asking twice is the same as once."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled


@dataclass(frozen=True)
class Progress:
    """How far a request is: `step` of `total` steps of `stage` are done."""

    stage: str
    step: int
    total: int
    seconds_left: float | None
    """Of this stage, at the mean pace of its steps so far; None before the first."""
    preview: Picture | None = field(default=None, compare=False)
    """[H, W, 3] RGB: roughly what the first video shows so far, small; None where none was asked for."""


def no_report(progress: Progress) -> None:
    """The listener for whoever does not watch."""


def show_nobody(video: torch.Tensor) -> None:
    """For whoever waits until the video is whole."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """How a running request is stopped and watched."""

    cancel: CancelToken = field(default_factory=CancelToken)
    report: Callable[[Progress], None] = no_report
    preview_every: int = 0
    """Steps from one preview to the next; 0 makes none."""
    show: Callable[[torch.Tensor], None] = show_nobody
    """Given each part of the video [B, 3, T, H, W] fp32 in [0, 1] as soon as it is there, where it is made in parts."""

    def check(self) -> None:
        """Go on only if nobody cancelled.

        Raises:
            Cancelled: somebody did.
        """
        if self.cancel.cancelled:
            raise Cancelled("the request was cancelled")

    def steps(
        self, stage: str, items: Iterable[T], total: int, preview: Callable[[], Picture | None] | None = None
    ) -> Iterator[T]:
        """`items`, of which there are `total`, as the steps of `stage`.

        Asks for cancellation before each is taken and reports after the caller is done with it, and once before
        the first. `preview` draws what a stage has so far; it is called for some steps, if previews are asked for.

        Raises:
            Cancelled: the token was cancelled since the last step.
        """
        started = time.perf_counter()
        self.report(Progress(stage, 0, total, None))
        source = iter(items)
        for done in range(1, total + 1):
            self.check()
            yield next(source)
            pace = (time.perf_counter() - started) / done
            drawn = preview is not None and self.preview_every > 0 and done % self.preview_every == 0 and done < total
            picture = preview() if preview is not None and drawn else None
            self.report(Progress(stage, done, total, pace * (total - done), picture))
        assert next(source, None) is None, f"{stage} has more than {total} steps"


@dataclass(frozen=True, kw_only=True)
class MediaInputs:
    """What the model is shown beside the prompt, as it was given: pixels are uint8, or fp32 in [0, 1]; on the CPU."""

    image: torch.Tensor | None = None
    """[H, W, 3], the first frame."""
    last_image: torch.Tensor | None = None
    """[H, W, 3], the last frame."""
    video: torch.Tensor | None = None
    """[T, H, W, 3], T frames of the request."""
    mask: torch.Tensor | None = None
    """[T, H, W, 3], white where the video is made anew."""
    reference_images: tuple[torch.Tensor, ...] = ()
    """Each [H, W, 3]."""
    pose_video: torch.Tensor | None = None
    """[T, H, W, 3], poses."""
    face_video: torch.Tensor | None = None
    """[T, H, W, 3], a face."""
    background_video: torch.Tensor | None = None
    """[T, H, W, 3], what is behind the person."""
    mask_video: torch.Tensor | None = None
    """[T, H, W, 3], white where the background is made anew."""
    start_video: torch.Tensor | None = None
    """[T, H, W, 3], T frames that the video begins with, fewer than those of the request."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of what is there."""
        found = {
            "image": self.image, "last_image": self.last_image, "reference_images": self.reference_images or None,
            "start_video": self.start_video, **self._clips,
        }  # fmt: skip
        return tuple(name for name in MEDIA if found[name] is not None)

    @property
    def _clips(self) -> dict[str, torch.Tensor | None]:
        return {
            "video": self.video, "mask": self.mask, "pose_video": self.pose_video, "face_video": self.face_video,
            "background_video": self.background_video, "mask_video": self.mask_video,
        }  # fmt: skip

    def between(self, start: int, stop: int) -> "MediaInputs":
        """The same with frames `start` to `stop` of each clip, which is taken to go back and forth for ever: the frame
        after the last is the one before it, and so on."""
        cut = {}
        for name, clip in self._clips.items():
            if clip is not None:
                last = len(clip) - 1
                place = torch.arange(start, stop) % max(1, 2 * last)
                cut[name] = clip[torch.minimum(place, 2 * last - place)]
        return dataclasses.replace(self, **cut)  # type: ignore[arg-type]


class BlockRuns(NamedTuple):
    """How often a block of the diffusion transformer ran, all steps and both predictions of guidance counted."""

    made: int
    saved: int
    """How often more it would have without step caches and ways to compute guidance less often."""


@dataclass(kw_only=True)
class ForwardBatch:
    """One call of a pipeline: the prompts that go through it together.

    The first five fields are the request, which no stage changes; the rest are None until a stage writes them.
    """

    prompts: list[str]
    negative_prompts: list[str]
    """One for each prompt; used with guidance only."""
    sampling: SamplingParam
    control: Control = field(default_factory=Control)
    media: MediaInputs = field(default_factory=MediaInputs)

    prompt_embeds: TextEmbeddings | None = None
    """Of the prompts, each `num_videos_per_prompt` times in a row: B = prompts * num_videos_per_prompt."""
    negative_prompt_embeds: TextEmbeddings | None = None
    """Of the negative prompts in the same order; stays None without guidance."""
    timesteps: torch.Tensor | None = None
    """[steps], descending, on the scheduler's scale."""
    image_embeds: torch.Tensor | None = None
    """[1, S, d], what an image encoder sees in the images."""
    condition: torch.Tensor | None = None
    """[1 or B, C, t, h, w] fp32, latents of the media that the model is shown at every step; None without media."""
    steering: torch.Tensor | None = None
    """[1, C, t, h, w] fp32, latents of a clip, such as of poses, that steers beside the condition; None without."""
    before: torch.Tensor | None = None
    """[B, 3, n, H, W] fp32 in [-1, 1] on the CPU, of a segment of a longer video: the last frames of the segment before
    it; None in the first segment, and in a video that is made at once."""
    noise_from: torch.Generator | None = None
    """Of a segment that goes on: the generator of the segment before; None starts one from the seed."""
    generator: torch.Generator | None = None
    """On the CPU, after the first noise was drawn."""
    latents: torch.Tensor | None = None
    """[B, C, t, h, w] fp32: noise first, the clean latents after denoising."""
    block_runs: BlockRuns | None = None
    """Of the denoising."""
    video: torch.Tensor | None = None
    """[B, 3, T, H, W] fp32 in [0, 1] on the CPU."""
    stage_times: dict[str, float] = field(default_factory=dict)
    """Seconds each stage took, by its name; written by the pipeline."""
    peak_memory: int = 0
    """The most bytes that a device held meanwhile, of all devices; written by the executor."""
    together: int = 1
    """How many requests, this one among them, were denoised together; written by the pipeline."""

    @property
    def guided(self) -> bool:
        """Whether the negative prompts take part (classifier-free guidance, arXiv 2207.12598)."""
        return self.sampling.guidance_scale > 1.0

    @property
    def size(self) -> int:
        """B, the number of videos."""
        return len(self.prompts) * self.sampling.num_videos_per_prompt


REQUEST_FIELDS = ("prompts", "negative_prompts", "sampling", "control", "media", "noise_from")
"""Fields of `ForwardBatch` that are there from the start."""


def written(value: T | None, name: str) -> T:
    """`value` of the batch's field `name`, which an earlier stage has written."""
    assert value is not None, f"batch.{name} is read before it is written"
    return value
