"""What is too old or too much is deleted; what waited too long fails."""

import threading
import time

from fastvideo.entrypoints.serve.files import FileStore
from fastvideo.entrypoints.serve.records import QUEUED, replica_of
from fastvideo.entrypoints.serve.runner import Runner
from fastvideo.entrypoints.serve.settings import GB, ServerSettings
from fastvideo.entrypoints.serve.store import Store
from fastvideo.logger import init_logger

logger = init_logger(__name__)

SWEEP_SECONDS = 30.0
IDEMPOTENCY_SECONDS = 86_400.0
"""For which an `Idempotency-Key` is remembered."""


class Sweeper(threading.Thread):
    """Sweeps now and then."""

    def __init__(self, store: Store, files: FileStore, runner: Runner, settings: ServerSettings) -> None:
        super().__init__(name="retention", daemon=True)
        self._store = store
        self._files = files
        self._runner = runner
        self._settings = settings
        self._stop = threading.Event()

    def run(self) -> None:
        while not self._stop.wait(SWEEP_SECONDS):
            try:
                self.sweep()
            except Exception as error:  # the database may be away for a while
                logger.error("retention: %s", type(error).__name__)

    def stop(self) -> None:
        """End soon."""
        self._stop.set()

    def sweep(self) -> None:
        """Delete and fail what is due."""
        now, settings = time.time(), self._settings
        for job in self._store.overdue(now - settings.queue_timeout):
            limit = f"{settings.queue_timeout:g} seconds"
            if self._store.fail(job.id, "timeout", f"the job waited longer than {limit}", (QUEUED,)):
                self._runner.tell_end(job.id)
        old = self._store.ended_before(now - settings.keep_hours * 3600) if settings.keep_hours else []
        old += self._store.beyond(settings.keep_gb * GB) if settings.keep_gb else []
        for job in old:
            if self._store.delete(job.id):
                for file in job.files.values():
                    self._files.delete(file["name"])
                logger.info("%s: deleted, as it was too old or the files too large", job.id)
        self._store.forget_keys(now - IDEMPOTENCY_SECONDS)

    def drop_orphans(self) -> None:
        """Delete files of this replica that no job has, such as of one that was cut short. Only while none runs."""
        for name in self._files.names():
            job_id = name.lstrip(".").split(".")[0].split("-")[0]
            if replica_of(job_id) != self._settings.replica:
                continue
            job = self._store.get(job_id)
            if job is None or name not in {file["name"] for file in job.files.values()}:
                self._files.delete(name)
