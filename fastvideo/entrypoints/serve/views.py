"""Jobs as clients see them: the object `video` of the OpenAI API with fields of our own beside, and events."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fastvideo.entrypoints.serve.assets import data_url
from fastvideo.entrypoints.serve.records import CANCELLED, COMPLETED, FAILED, QUEUED, RUNNING, Job
from fastvideo.pipelines.pipeline_batch_info import Progress

SPANS = {"text_encoding": (0.0, 2.0), "denoising": (2.0, 90.0), "decoding": (90.0, 99.0)}
"""Where a stage lies in a job, in percent."""
OWN = ("num_frames", "fps", "num_inference_steps", "guidance_scale", "guidance_scale_2", "seed", "negative_prompt",
       "strength", "loras")  # fmt: skip
"""Sampling parameters that a video shows."""


class ErrorDetail(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class Video(BaseModel):
    """A video job."""

    model_config = ConfigDict(extra="allow")
    id: str
    object: Literal["video"]
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    error: ErrorDetail | None
    prompt: str
    remixed_from_video_id: str | None
    seconds: str
    size: str


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"]
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A video that is gone."""

    id: str
    object: Literal["video.deleted"]
    deleted: bool


def status_of(job: Job) -> str:
    """The status that OpenAI has for a job's state: a cancelled one has failed, with the code "cancelled"."""
    return FAILED if job.state == CANCELLED else job.state


def seconds_of(sampling: dict[str, Any]) -> str:
    """The length of a clip."""
    return f"{round(sampling['num_frames'] / sampling['fps'], 3):g}"


def shown_sampling(job: Job) -> dict[str, Any]:
    """The sampling parameters of a job as its video has them: with the frames that it continues, and no Nones."""
    sampling = {name: value for name, value in job.sampling.items() if value is not None}
    before, again = job.request.get("extends_frames"), job.request.get("repeats_frames", 1)
    return sampling | ({"num_frames": before + sampling["num_frames"] - again} if before else {})


def video_of(job: Job, *, live: dict[str, Any] | None = None, position: int | None = None,
             keep_hours: float = 0) -> dict[str, Any]:  # fmt: skip
    """The object `video` of a job.

    Args:
        job: as the database has it.
        live: the last event of a job that runs.
        position: how many jobs are ahead of one that waits.
        keep_hours: after which it is deleted; 0: never.
    """
    sampling, running = shown_sampling(job), live is not None and job.state == RUNNING
    made = {
        "id": job.id,
        "object": "video",
        "model": job.model,
        "status": status_of(job),
        "progress": live["progress"] if running and live is not None else job.progress,
        "created_at": int(job.created_at),
        "completed_at": int(job.ended_at) if job.ended_at is not None and job.state == COMPLETED else None,
        "expires_at": int(job.ended_at + keep_hours * 3600) if job.ended_at is not None and keep_hours else None,
        "error": job.error,
        "prompt": job.prompt,
        "remixed_from_video_id": job.remixed_from,
        "seconds": seconds_of(sampling),
        "size": f"{sampling['width']}x{sampling['height']}",
    }
    made |= {name: sampling[name] for name in OWN if name in sampling}
    made |= {"priority": job.priority, "started_at": None if job.started_at is None else int(job.started_at)}
    if running and live is not None:
        made |= {name: live.get(name) for name in ("stage", "step", "total", "seconds_left")}
    if position is not None and job.state == QUEUED:
        made["position"] = position
    return made | ({"bytes": job.files["video"]["bytes"], **job.result} if job.state == COMPLETED and job.files else {})


def state_event(job: Job) -> dict[str, Any]:
    """The event of a job that came to its state."""
    made: dict[str, Any] = {"type": f"video.{status_of(job)}", "id": job.id, "status": status_of(job)}
    made["progress"] = job.progress
    return made | ({"error": job.error} if job.error else {})


def progress_event(job: Job, progress: Progress) -> dict[str, Any]:
    """The event of a step."""
    begin, end = SPANS.get(progress.stage, (0.0, 2.0))
    percent = int(begin + (end - begin) * progress.step / max(1, progress.total))
    made = {
        "type": "video.progress", "id": job.id, "status": RUNNING, "progress": percent, "stage": progress.stage,
        "step": progress.step, "total": progress.total,
        "seconds_left": None if progress.seconds_left is None else round(progress.seconds_left, 2),
    }  # fmt: skip
    return made | ({} if progress.preview is None else {"preview": data_url(progress.preview)})
