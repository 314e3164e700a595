"""What the parts of a server share."""

import fcntl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from fastvideo.entrypoints.serve.database import open_engine
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.events import Hub
from fastvideo.entrypoints.serve.files import FileStore
from fastvideo.entrypoints.serve.intake import drop, kept
from fastvideo.entrypoints.serve.keys import Caller
from fastvideo.entrypoints.serve.metrics import Metrics
from fastvideo.entrypoints.serve.plan import Plan
from fastvideo.entrypoints.serve.planner import Planner
from fastvideo.entrypoints.serve.protocols import Generator
from fastvideo.entrypoints.serve.records import ID_PATTERN, QUEUED, RUNNING, Ids, Job
from fastvideo.entrypoints.serve.retention import Sweeper
from fastvideo.entrypoints.serve.runner import Runner
from fastvideo.entrypoints.serve.settings import ServerSettings
from fastvideo.entrypoints.serve.store import Limits, Store
from fastvideo.entrypoints.serve.views import video_of
from fastvideo.entrypoints.serve.webhooks import Reporter
from fastvideo.logger import init_logger

logger = init_logger(__name__)

LOADING_SECONDS = 5
"""After which a client may ask again whether the model is loaded."""


class Server:
    """One server: its store, its files, and the thread that owns the model."""

    def __init__(
        self, load: Callable[[], Generator], name: str, settings: ServerSettings, defaults: dict[str, Any] | None = None
    ) -> None:
        """Open the store and the files, and queue again what ran when the server died.

        Args:
            load: makes the generator; called in the thread that then owns it.
            name: of the model.
            settings: checked.
            defaults: the operator's sampling parameters.

        Raises:
            ValueError: the database or the folder of files cannot be opened.
        """
        self.settings = settings
        self.names = settings.served_model_names or [name]
        self.started_at = int(time.time())
        self._lock_file = lock_folder(Path(settings.data_dir), settings.replica)
        self.store = Store(open_engine(settings.database), settings.replica, reports=settings.webhook_url is not None)
        self.files = FileStore(settings.files)
        again, failed = self.store.recover(settings.max_attempts)
        if again or failed:
            logger.warning("jobs that ran when the server died: %d are queued again, %d fail", again, failed)
        self.ids = Ids(settings.replica)
        self.hub = Hub()
        self.metrics = Metrics(self.store.waiting)
        self.planner: Planner | None = None
        self._defaults = defaults or {}
        self.runner = Runner(load, self.store, self.files, self.hub, self.metrics, settings)
        self.runner.on_ready = self._make_planner
        self._sweeper = Sweeper(self.store, self.files, self.runner, settings)
        self._reporter = None
        if settings.webhook_url is not None and settings.webhook_secret is not None:
            self._reporter = Reporter(self.store, settings.webhook_url, settings.webhook_secret)
        self.on_loaded: Callable[[Generator], None] = lambda generator: None
        """Called in the model's thread once the model is loaded, before any job runs."""
        self.closing = threading.Event()
        """Set when the server begins to stop: streams end."""

    @property
    def cache(self) -> Path:
        """A folder for copies of files that lie elsewhere."""
        return Path(self.settings.data_dir).absolute() / f"cache-{self.settings.replica}"

    @property
    def scratch(self) -> Path:
        """A folder for files that are being made; the runner empties it at the start."""
        return Path(self.settings.data_dir).absolute() / f"scratch-{self.settings.replica}"

    def start(self) -> None:
        """Clean up after a server that died, then start to load and to work."""
        self._sweeper.drop_orphans()
        for thread in (self.runner, self._sweeper, self._reporter):
            if thread is not None:
                thread.start()

    def stop(self) -> None:
        """Stop; the job that runs is queued again."""
        self.closing.set()
        self._sweeper.stop()
        if self._reporter is not None:
            self._reporter.stop()
        self.runner.stop()
        self.store.engine.dispose()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def _make_planner(self, generator: Generator) -> None:
        self.planner = Planner(generator, self.names, self._defaults, self.settings)
        self.on_loaded(generator)

    @property
    def plans(self) -> Planner:
        """The planner, once the model is loaded.

        Raises:
            ApiError: 503 until then.
        """
        if self.planner is None:
            raise ApiError(503, "the model is being loaded", code="not_ready",
                           headers={"Retry-After": str(LOADING_SECONDS)})  # fmt: skip
        return self.planner

    def submit(
        self, plan: Plan, caller: Caller, *, kind: str = "video", remixed_from: str | None = None,
        key: str | None = None, digest: str = "",
    ) -> tuple[Job, bool]:  # fmt: skip
        """Queue a plan; gives the job, and whether it is a new one.

        Raises:
            ApiError: 403 for a priority that the caller may not ask for, 409 and 429 as `Store.admit`.
        """
        if plan.priority > 0:
            caller.require("priority")
        job_id = self.ids.new(kind)
        # before the job is there, so that none is there without them
        parts = kept(self, job_id, plan.inputs)
        job = Job(
            id=job_id, kind=kind, replica=self.settings.replica, owner=caller.owner, state=QUEUED,
            priority=plan.priority, created_at=time.time(), model=str(plan.request.get("model") or self.names[0]),
            prompt=plan.prompt, request=plan.request, sampling=plan.sampling, remixed_from=remixed_from, files=parts,
            nbytes=sum(part["bytes"] for part in parts.values()), result={},
        )  # fmt: skip
        limits = Limits(self.settings.max_queue, caller.max_jobs or self.settings.max_jobs_per_key)
        try:
            job, new = self.store.admit(job, limits, key, digest)
        except ApiError as error:
            drop(self, parts.values())
            if error.status == 429:
                error.headers["Retry-After"] = str(self.retry_after())
            raise
        if new:
            self.runner.announce()
        else:
            drop(self, parts.values())
        return job, new

    def retry_after(self) -> int:
        """Seconds until the job that runs may be over, from 1 to 60."""
        current = self.runner.current
        event = None if current is None else self.hub.latest(current)
        left = None if event is None else event.get("seconds_left")
        return int(min(60, max(1, left or 1)))

    def job(self, job_id: str, caller: Caller) -> Job:
        """The job of that id, if the caller may see it.

        Raises:
            ApiError: 404; there is none, or it is another's.
        """
        job = self.store.get(job_id)
        if job is None or caller.sees not in (None, job.owner):
            raise ApiError(404, f"{job_id}: there is no such video", code="not_found")
        return job

    def show(self, job: Job) -> dict[str, Any]:
        """The object `video` of a job, as it is now."""
        live = self.hub.latest(job.id) if job.state == RUNNING else None
        position = self.store.position(job) if job.state == QUEUED else None
        return video_of(job, live=live, position=position, keep_hours=self.settings.keep_hours)

    def delete(self, job: Job) -> None:
        """Delete a job that ended, and its files.

        Raises:
            ApiError: 409; it has not ended.
        """
        if not self.store.delete(job.id):
            raise ApiError(409, f"{job.id}: is {job.state}; cancel it first", code="not_ended")
        for file in job.files.values():
            self.files.delete(file["name"])


def lock_folder(folder: Path, replica: str) -> IO[str] | None:
    """Hold the folder of a server: two at once would run each job twice.

    Raises:
        ValueError: another server of that name has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{replica}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"data_dir={str(folder)!r}: a server {replica!r} works there already; stop it, or choose "
                         "another data_dir or replica") from None  # fmt: skip
    return file


__all__ = ["ID_PATTERN", "Server"]
