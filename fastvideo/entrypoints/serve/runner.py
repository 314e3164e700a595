"""The thread that owns the model: takes one job after the other from the queue and runs it."""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.serve.assets import write_spritesheet, write_thumbnail
from fastvideo.entrypoints.serve.database import away, patiently
from fastvideo.entrypoints.serve.events import Hub
from fastvideo.entrypoints.serve.files import FileStore
from fastvideo.entrypoints.serve.growing import Streams
from fastvideo.entrypoints.serve.making import Loras, joined, media_for
from fastvideo.entrypoints.serve.metrics import Metrics
from fastvideo.entrypoints.serve.planner import Model
from fastvideo.entrypoints.serve.records import RUNNING, Job
from fastvideo.entrypoints.serve.settings import ServerSettings
from fastvideo.entrypoints.serve.store import Store
from fastvideo.entrypoints.serve.views import progress_event, state_event
from fastvideo.logger import init_logger
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Progress

logger = init_logger(__name__)

IDLE_SECONDS = 0.5
"""Between looks at an empty queue that nobody announced a job for."""
NOTE_SECONDS = 1.0
"""Between two notes of the progress in the database."""


class Generator(Model, Protocol):
    """The part of `VideoGenerator` that a server uses."""

    def generate_video(
        self, prompt: str, sampling_param: SamplingParam | None = None, *,
        progress: Callable[[Progress], None] | None = None, cancel: CancelToken | None = None, preview_every: int = 0,
        **fields: Any,
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


@dataclass
class Current:
    """The job that runs."""

    job: Job
    token: CancelToken = field(default_factory=CancelToken)
    why: str = ""
    """Why it is being stopped: "cancelled", "timeout" or "shutdown"."""

    def stop(self, why: str) -> None:
        """Stop it at its next step; the first reason counts."""
        self.why = self.why or why
        self.token.cancel()


class Runner(threading.Thread):
    """Loads the model, then runs jobs until it is stopped."""

    def __init__(
        self, load: Callable[[], Generator], store: Store, files: FileStore, hub: Hub, metrics: Metrics,
        settings: ServerSettings,
    ) -> None:  # fmt: skip
        super().__init__(name="model", daemon=True)
        self._load = load
        self._store = store
        self._files = files
        self._hub = hub
        self._metrics = metrics
        self._settings = settings
        self._scratch = Path(settings.data_dir).absolute() / f"scratch-{settings.replica}"
        self._lock = threading.Lock()
        self._current: Current | None = None
        self._stopping = False
        self._away = False
        self._wake = threading.Event()
        self.streams = Streams()
        self.generator: Generator | None = None
        self.failure: BaseException | None = None
        """What ended the thread, if it did not end by `stop`."""
        self.on_ready: Callable[[Generator], None] = lambda generator: None
        self.on_failure: Callable[[], None] = lambda: None

    def run(self) -> None:
        """Load and work."""
        try:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir(parents=True)
            generator = self._load()
            try:
                self._loras = Loras(generator, self._settings.loras)
                self.on_ready(generator)
                self.generator = generator
                self._metrics.ready.set(1)
                self._work(generator)
            finally:
                self._metrics.ready.set(0)
                generator.shutdown()
        except BaseException as error:
            self.failure = error
            self.on_failure()

    def announce(self) -> None:
        """There may be a new job."""
        self._wake.set()

    def cancel(self, job_id: str) -> bool:
        """Cancel a job, at its next step if it runs here. Whether it was still open."""
        if self._store.cancel(job_id, "queued"):
            self.tell_end(job_id)
            return True
        with self._lock:
            if self._current is None or self._current.job.id != job_id:
                return False
            self._current.stop("cancelled")
        return True

    @property
    def current(self) -> str | None:
        """The id of the job that runs."""
        current = self._current
        return None if current is None else current.job.id

    def stop(self) -> None:
        """End after the next step; the job that runs is queued again. Waits for that."""
        self._store.stopping.set()
        with self._lock:
            self._stopping = True
            if self._current is not None:
                self._current.stop("shutdown")
        self._wake.set()
        if self.is_alive():
            self.join()

    def _work(self, generator: Generator) -> None:
        while True:
            with self._lock:
                if self._stopping:
                    return
                job = self._claimed()
                self._current = current = None if job is None else Current(job)
            if current is None:
                self._wake.wait(IDLE_SECONDS)
                self._wake.clear()
                continue
            self._metrics.running.set(1)
            self._metrics.wait.observe(time.time() - current.job.created_at)
            watchdog = threading.Timer(self._settings.job_timeout, current.stop, ("timeout",))
            watchdog.daemon = True
            watchdog.start()
            try:
                self._run_job(generator, current)
            finally:
                watchdog.cancel()
                self._metrics.running.set(0)
                with self._lock:
                    self._current = None

    def _claimed(self) -> Job | None:
        """The next job; none either while the database is away."""
        try:
            job = self._store.claim()
        except sa.exc.SQLAlchemyError as error:
            if not away(error):
                raise
            if not self._away:
                logger.error("the database is away (%s); waiting for it", type(error).__name__)
            self._away = True
            return None
        self._away = False
        return job

    def _run_job(self, generator: Generator, current: Current) -> None:
        job = current.job
        self._hub.publish(job.id, state_event(job))
        logger.info("%s: begins", job.id)
        try:
            with _folder(self._scratch / job.id) as folder:
                results = self._generate(generator, current, folder)
                self._publish(job, folder, results)
        except Cancelled:
            self._stopped(current)
        except Exception as error:
            self._failed(job, error)

    def _generate(self, generator: Generator, current: Current, folder: Path) -> list[Any]:
        job = current.job
        noted = time.monotonic()

        def report(progress: Progress) -> None:
            nonlocal noted
            event = progress_event(job, progress)
            self._hub.publish(job.id, event)
            if progress.stage == "denoising" and progress.step:
                self._metrics.steps.inc()
            if time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                with suppress(sa.exc.SQLAlchemyError):  # the next note will do
                    self._store.set_progress(job.id, event["progress"])

        target = folder / "video.mp4" if job.kind == "video" else folder / "images" / "%04d.png"
        fields = job.sampling | {"output_path": str(target), "save_video": True, "return_frames": True}
        every = self._settings.preview_every if job.kind == "video" else 0
        media = media_for(job, self._files, folder)
        self._loras.use(fields.pop("loras", []))
        with (
            self.streams.growing(job, folder, self._files)
            if self._streams(generator, job)
            else nullcontext() as on_chunk
        ):
            more: dict[str, Any] = {} if on_chunk is None else {"on_chunk": on_chunk}
            made = generator.generate_video(
                job.prompt, progress=report, cancel=current.token, preview_every=every, **fields, **media, **more
            )
        return made if isinstance(made, list) else [made]

    @staticmethod
    def _streams(generator: Generator, job: Job) -> bool:
        return generator.entry.streams and job.kind == "video"

    def _publish(self, job: Job, folder: Path, results: list[Any]) -> None:
        """Put the files in place, and then say that the job is done."""
        parts: list[tuple[str, Path, str]] = []
        if job.kind == "video":
            sheet, thumbnail = folder / "sheet.jpg", folder / "thumbnail.webp"
            frames = joined(job, results[0], self._files, folder)
            write_spritesheet(frames, sheet)
            write_thumbnail(frames, thumbnail)
            parts = [("video", Path(results[0].video_path), "video/mp4"), ("thumbnail", thumbnail, "image/webp"),
                     ("spritesheet", sheet, "image/jpeg")]  # fmt: skip
        else:
            images = [Path(result.video_path).parent / "0000.png" for result in results]
            parts = [(f"image{number}", image, "image/png") for number, image in enumerate(images)]
        files: dict[str, dict[str, Any]] = {}
        for part, path, kind in parts:
            name = f"{job.id}.{part}{path.suffix}"
            files[part] = {"name": name, "bytes": self._files.put(path, name), "type": kind}
        first = results[0]
        times, peak = dict(first.stage_times), first.peak_memory_mb
        summary = {"generation_seconds": first.generation_time, "stage_seconds": times, "peak_memory_mb": peak}
        everything = job.files | files
        if self._store.ended(job.id, lambda: self._store.complete(job.id, everything, summary)):
            self._measure(times, peak, job)
            logger.info("%s: done in %.1f s", job.id, first.generation_time)
        else:  # another has ended the job meanwhile
            for file in files.values():
                self._files.delete(file["name"])
        self.tell_end(job.id)

    def _measure(self, times: dict[str, float], peak_memory_mb: float, job: Job) -> None:
        for stage, seconds in times.items():
            self._metrics.stages.labels(stage).observe(seconds)
        if times.get("denoising"):
            self._metrics.pace.set(job.sampling["num_inference_steps"] / times["denoising"])
        self._metrics.memory.set(peak_memory_mb * 2**20)

    def _stopped(self, current: Current) -> None:
        job_id = current.job.id
        if current.why == "shutdown":
            logger.info("%s: stopped with the server, and queued again", job_id)
            with suppress(sa.exc.SQLAlchemyError):  # the next start finds it running, and queues it again
                self._store.put_back(job_id)
            return
        if current.why == "timeout":
            limit = self._settings.job_timeout
            message = f"the job ran longer than the {limit:g} seconds that are allowed"
            self._store.ended(job_id, lambda: self._store.fail(job_id, "timeout", message))
        else:
            self._store.ended(job_id, lambda: self._store.cancel(job_id, RUNNING))
        logger.info("%s: %s", job_id, current.why)
        self.tell_end(job_id)

    def _failed(self, job: Job, error: Exception) -> None:
        code, message = explained(error)
        logger.error("%s: %s: %s", job.id, code, type(error).__name__ if code == "server_error" else message)
        logger.debug("%s", job.id, exc_info=error)
        self._store.ended(job.id, lambda: self._store.fail(job.id, code, message))
        self.tell_end(job.id)

    def tell_end(self, job_id: str) -> None:
        """Tell listeners and metrics that a job has ended."""
        job = patiently(lambda: self._store.get(job_id), self._store.stopping)
        if job is None:
            return
        self._metrics.jobs.labels(job.state).inc()
        if job.error is not None and job.state == "failed":
            self._metrics.failures.labels(job.error["code"]).inc()
        self._hub.publish(job_id, state_event(job))


def explained(error: Exception) -> tuple[str, str]:
    """A code and a message for the client: no path, and nothing of how the server works."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out_of_memory", "the server's memory was not enough; try a smaller size or fewer frames"
    if isinstance(error, FloatingPointError):
        return "not_finite", str(error)
    if isinstance(error, OSError):
        return "storage", "the server could not write the file"
    return "server_error", "the server failed; its log says why"


class _folder:  # noqa: N801 - used as a function
    """A folder that is there within the block."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        self._path.mkdir(parents=True)
        return self._path

    def __exit__(self, *raised: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
