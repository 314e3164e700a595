"""The thread that owns the model: takes jobs from the queue, one or some that go together, and runs them."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from fastvideo.entrypoints.serve.assets import write_spritesheet, write_thumbnail
from fastvideo.entrypoints.serve.batching import Batching
from fastvideo.entrypoints.serve.database import away, patiently
from fastvideo.entrypoints.serve.events import Hub
from fastvideo.entrypoints.serve.files import FileStore
from fastvideo.entrypoints.serve.growing import Streams
from fastvideo.entrypoints.serve.making import Loras, joined, media_for
from fastvideo.entrypoints.serve.metrics import Metrics
from fastvideo.entrypoints.serve.protocols import Generator
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


@dataclass
class Current:
    """A job that runs."""

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
        self._running: dict[str, Current] = {}
        self._batching = Batching(settings.max_batch_size)
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
            current = self._running.get(job_id)
            if current is not None:
                current.stop("cancelled")
        return current is not None

    @property
    def current(self) -> str | None:
        """The id of the job that runs; of several that of the first."""
        with self._lock:
            return next(iter(self._running), None)

    def stop(self) -> None:
        """End after the next step; what runs is queued again. Waits for that."""
        self._store.stopping.set()
        with self._lock:
            self._stopping = True
            for current in self._running.values():
                current.stop("shutdown")
        self._wake.set()
        if self.is_alive():
            self.join()

    def _work(self, generator: Generator) -> None:
        while True:
            with self._lock:
                if self._stopping:
                    return
                begun = [Current(job) for job in self._claimed(self._batching.most if generator.batches else 1)]
                self._running = {current.job.id: current for current in begun}
            if not begun:
                self._wake.wait(IDLE_SECONDS)
                self._wake.clear()
                continue
            for current in begun:
                self._metrics.wait.observe(time.time() - current.job.created_at)
                self._hub.publish(current.job.id, state_event(current.job))
                logger.info("%s: begins", current.job.id)
            try:
                left = self._run_together(generator, begun) if len(begun) > 1 else begun
                for current in left:
                    with self._limited([current]):
                        self._run_job(generator, current)
            finally:
                with self._lock:
                    self._running = {}

    def _claimed(self, most: int) -> list[Job]:
        """The next jobs, at most so many; none either while the database is away."""
        try:
            begun = self._store.claim_together(most, self._batching.joins)
        except sa.exc.SQLAlchemyError as error:
            if not away(error):
                raise
            if not self._away:
                logger.error("the database is away (%s); waiting for it", type(error).__name__)
            self._away = True
            return []
        self._away = False
        return begun

    @contextmanager
    def _limited(self, currents: list[Current]) -> Iterator[None]:
        """Within the block, see to it that jobs do not take longer than they may: together as long as one by one."""
        watchdogs = [
            threading.Timer(self._settings.job_timeout * len(currents), current.stop, ("timeout",))
            for current in currents
        ]
        self._metrics.running.set(len(currents))
        for watchdog in watchdogs:
            watchdog.daemon = True
            watchdog.start()
        try:
            yield
        finally:
            for watchdog in watchdogs:
                watchdog.cancel()
            self._metrics.running.set(0)

    def _run_together(self, generator: Generator, currents: list[Current]) -> list[Current]:
        """Run jobs that go together. Gives those that have not ended, as something went wrong with all."""
        left, results = dict(enumerate(currents)), []
        logger.info("%d jobs are begun together", len(currents))
        with self._limited(currents), ExitStack() as stack:
            folders = [stack.enter_context(_folder(self._scratch / current.job.id)) for current in currents]

            def ended(number: int, result: Any) -> None:
                current = left.pop(number)
                if not isinstance(result, Exception):
                    results.append(result if not isinstance(result, list) else result[0])
                self._settle(current, folders[number], lambda: listed(result))
                with self._lock:
                    self._running.pop(current.job.id, None)

            try:
                asked = [self._asked(*one) for one in zip(currents, folders, strict=True)]
                self._loras.use(currents[0].job.sampling.get("loras", []))
                generator.generate_videos(asked, return_exceptions=True, on_result=ended)
            except Exception as error:
                logger.warning("jobs run one by one, as together they ended with %s", type(error).__name__)
                logger.debug("together", exc_info=error)
        self._batching.learn([current.job for current in currents], results)
        return list(left.values())

    def _run_job(self, generator: Generator, current: Current) -> None:
        with _folder(self._scratch / current.job.id) as folder:
            self._settle(current, folder, lambda: self._generate(generator, current, folder))

    def _settle(self, current: Current, folder: Path, results: Callable[[], list[Any]]) -> None:
        """End a job with its `results`, or with what they raise."""
        try:
            self._publish(current.job, folder, results())
        except Cancelled:
            self._stopped(current)
        except Exception as error:
            self._failed(current.job, error)

    def _generate(self, generator: Generator, current: Current, folder: Path) -> list[Any]:
        job = current.job
        asked = self._asked(current, folder)
        self._loras.use(job.sampling.get("loras", []))
        grows = generator.entry.streams and job.kind == "video"
        with self.streams.growing(job, folder, self._files) if grows else nullcontext() as on_chunk:
            more: dict[str, Any] = {} if on_chunk is None else {"on_chunk": on_chunk}
            return listed(generator.generate_video(**asked, **more))

    def _asked(self, current: Current, folder: Path) -> dict[str, Any]:
        """The arguments of `generate_video` for a job, whose files go into `folder`."""
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
        fields = {name: value for name, value in job.sampling.items() if name != "loras"}
        fields |= {"output_path": str(target), "save_video": True, "return_frames": True}
        every = self._settings.preview_every if job.kind == "video" else 0
        media = media_for(job, self._files, folder)
        return {"prompt": job.prompt, "progress": report, "cancel": current.token, "preview_every": every,
                **fields, **media}  # fmt: skip

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
        summary = {"generation_seconds": first.generation_time, "stage_seconds": times, "peak_memory_mb": peak,
                   "batch_size": first.batch_size}  # fmt: skip
        everything = job.files | files
        if self._store.ended(job.id, lambda: self._store.complete(job.id, everything, summary)):
            self._measure(first, job)
            logger.info("%s: done in %.1f s", job.id, first.generation_time)
        else:  # another has ended the job meanwhile
            for file in files.values():
                self._files.delete(file["name"])
        self.tell_end(job.id)

    def _measure(self, result: Any, job: Job) -> None:
        for stage, seconds in result.stage_times.items():
            self._metrics.stages.labels(stage).observe(seconds)
        if result.stage_times.get("denoising"):
            steps = job.sampling["num_inference_steps"] * result.batch_size
            self._metrics.pace.set(steps / result.stage_times["denoising"])
        self._metrics.together.observe(result.batch_size)
        self._metrics.memory.set(result.peak_memory_mb * 2**20)

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


def listed(made: Any) -> list[Any]:
    """The results of a job, which may have several; raises what it ended with instead."""
    if isinstance(made, Exception):
        raise made
    return made if isinstance(made, list) else [made]


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
