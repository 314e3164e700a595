"""The durable queue: every change of a job is a transaction of the database, so a server that dies loses nothing."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import sqlalchemy as sa

from fastvideo.entrypoints.serve.database import alone, patiently
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.records import (
    CANCELLED,
    COMPLETED,
    ENDED,
    FAILED,
    OPEN,
    QUEUED,
    RUNNING,
    Job,
    deliveries,
    idempotency,
    jobs,
)  # fmt: skip

KNOWN = 10_000
"""Jobs that are kept in memory for those who ask how they are."""


@dataclass(frozen=True)
class Limits:
    """How much may wait."""

    queue: int
    """Jobs of this replica that wait."""
    per_owner: int
    """Jobs of one owner that wait or run."""


class Store:
    """The jobs of one replica; reads see those of all replicas in the database."""

    def __init__(self, engine: sa.Engine, replica: str, reports: bool = False) -> None:
        """`reports`: whether the end of each job has to be reported by webhook."""
        self.engine = engine
        self.replica = replica
        self._reports = reports
        self._admitting = threading.Lock()
        self._known: dict[str, Job] = {}
        """Jobs of this replica, which nobody else changes."""
        self._changes = 0
        self._knowing = threading.Lock()
        self.stopping = threading.Event()
        """Set when the server stops: nothing waits for a database that is away."""

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, committed at the end of the block."""
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def _first(self, query: sa.Select[Any]) -> Job | None:
        with self.engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else Job.of(row)

    # ---- in ----

    def admit(self, job: Job, limits: Limits, key: str | None = None, digest: str = "") -> tuple[Job, bool]:
        """Add `job` to the queue, unless a request with the same idempotency `key` did before.

        Returns:
            The job that is there now, and whether it is new.

        Raises:
            ApiError: 429 when a limit is reached; 409 when `key` was used for a request with another `digest`.
        """
        if "\x00" in job.prompt:
            raise ApiError(400, "prompt: holds the character NUL; leave it out", param="prompt", code="invalid_value")
        with self._admitting, self.writing() as connection:
            # the limits of an owner, and the same request twice, are counted for all replicas of a database
            alone(connection, f"owner {job.owner}")
            if key is not None:
                used = (idempotency.c.owner == job.owner) & (idempotency.c.key == key)
                found = connection.execute(sa.select(idempotency).where(used)).mappings().first()
                if found is not None:
                    return self._replayed(connection, dict(found), digest), False
            self._check_limits(connection, job, limits)
            connection.execute(jobs.insert(), job.row())
            if key is not None:
                values = {"owner": job.owner, "key": key, "digest": digest, "job": job.id, "created_at": job.created_at}
                connection.execute(idempotency.insert(), values)
        return job, True

    def _replayed(self, connection: sa.Connection, found: Mapping[str, Any], digest: str) -> Job:
        if found["digest"] != digest:
            raise ApiError(409, "Idempotency-Key: was used for another request; use a new one",
                           param="Idempotency-Key", code="idempotency_key_reused")  # fmt: skip
        row = connection.execute(sa.select(jobs).where(jobs.c.id == found["job"])).mappings().first()
        if row is None:
            raise ApiError(409, "Idempotency-Key: its job was deleted; use a new one",
                           param="Idempotency-Key", code="idempotency_key_reused")  # fmt: skip
        return Job.of(row)

    def _check_limits(self, connection: sa.Connection, job: Job, limits: Limits) -> None:
        waiting = sa.select(sa.func.count()).where(jobs.c.replica == self.replica, jobs.c.state == QUEUED)
        if connection.execute(waiting).scalar_one() >= limits.queue:
            raise ApiError(429, f"the queue is full ({limits.queue} jobs wait); try again later", code="queue_full")
        own = sa.select(sa.func.count()).where(jobs.c.owner == job.owner, jobs.c.state.in_(OPEN))
        if connection.execute(own).scalar_one() >= limits.per_owner:
            raise ApiError(429, f"{limits.per_owner} of your jobs wait or run, which is your limit; wait for one",
                           code="quota_exceeded")  # fmt: skip

    # ---- through ----

    def recover(self, max_attempts: int) -> tuple[int, int]:
        """Queue again what ran when the server died; what was started `max_attempts` times fails.

        Returns:
            How many are queued again, and how many failed.
        """
        error = json.dumps({"code": "server_died", "message": f"the server died {max_attempts} times while it ran"})
        mine = (jobs.c.replica == self.replica) & (jobs.c.state == RUNNING)
        with self.writing() as connection:
            failed = connection.execute(
                jobs.update().where(mine, jobs.c.attempts >= max_attempts)
                .values(state=FAILED, error=error, ended_at=time.time())
            )  # fmt: skip
            again = connection.execute(jobs.update().where(mine).values(state=QUEUED, progress=0))
        with self._knowing:
            self._known.clear()
        return again.rowcount, failed.rowcount

    def claim(self) -> Job | None:
        """Begin the job that is next: of the highest priority, the oldest. None when nothing waits."""
        begun = self.claim_together(1, lambda first, other: False)
        return begun[0] if begun else None

    def claim_together(self, most: int, joins: Callable[[Job, Job], bool]) -> list[Job]:
        """Begin the job that is next, and at most `most` with it: those right behind it, as far as `joins` says of the
        first and each that they go together. So none is begun before one that came before it."""
        waiting = sa.select(jobs).where(jobs.c.replica == self.replica, jobs.c.state == QUEUED)
        next_ones = waiting.order_by(jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id).limit(most)
        with self.engine.connect() as connection:
            if connection.execute(next_ones.limit(1)).first() is None:
                return []
        with self.writing() as connection:
            # another server that took the name of this replica has locked what it is about to begin
            found = [Job.of(row) for row in connection.execute(next_ones.with_for_update(skip_locked=True)).mappings()]
            together = found[:1] + list(takewhile(lambda other: joins(found[0], other), found[1:]))
            begun = [
                dataclasses.replace(job, state=RUNNING, started_at=time.time(), attempts=job.attempts + 1, progress=0)
                for job in together
            ]
            for job in begun:
                values = {name: getattr(job, name) for name in ("state", "started_at", "attempts", "progress")}
                connection.execute(jobs.update().where(jobs.c.id == job.id).values(values))
        for job in begun:
            self._changed(job.id)
        return begun

    def ended(self, job_id: str, end: Callable[[], bool]) -> bool:
        """Have `end` end a job that runs; where the database is away, as soon as it is back. Whether it did.

        Where the answer to the first try was lost, the second finds the job ended as it wanted.
        """
        tries = 0

        def attempt() -> bool:
            nonlocal tries
            tries += 1
            if end():
                return True
            self._changed(job_id)
            job = self.get(job_id)
            return tries > 1 and job is not None and job.state in ENDED

        return patiently(attempt, self.stopping)

    def put_back(self, job_id: str) -> None:
        """Queue a job again that the server stopped because it stops itself; that is no attempt."""
        values = {"state": QUEUED, "progress": 0, "attempts": jobs.c.attempts - 1}
        self._change(job_id, (RUNNING,), values)

    def set_progress(self, job_id: str, percent: int) -> None:
        """Note how far a job is."""
        self._change(job_id, (RUNNING,), {"progress": percent})

    def complete(self, job_id: str, files: dict[str, dict[str, Any]], result: dict[str, Any]) -> bool:
        """A job is done, and its `files` are there. Whether it was still running."""
        nbytes = sum(int(file["bytes"]) for file in files.values())
        values = {"state": COMPLETED, "files": json.dumps(files), "nbytes": nbytes, "result": json.dumps(result)}
        return self._end(job_id, (RUNNING,), values | {"progress": 100})

    def fail(self, job_id: str, code: str, message: str, states: Sequence[str] = OPEN) -> bool:
        """A job that is in one of `states` ended without a result. Whether it was."""
        return self._end(job_id, states, {"state": FAILED, "error": json.dumps({"code": code, "message": message})})

    def cancel(self, job_id: str, state: str) -> bool:
        """Cancel a job that is in `state`. Whether it was."""
        error = json.dumps({"code": "cancelled", "message": "the job was cancelled"})
        return self._end(job_id, (state,), {"state": CANCELLED, "error": error})

    def _end(self, job_id: str, states: Sequence[str], values: dict[str, Any]) -> bool:
        now = time.time()
        there = (jobs.c.id == job_id) & jobs.c.state.in_(states)
        with self.writing() as connection:
            changed = connection.execute(jobs.update().where(there).values(values | {"ended_at": now})).rowcount == 1
            if changed and self._reports:
                # in the same transaction: no end is left unreported
                connection.execute(deliveries.insert(), self._delivery(job_id, values["state"], now))
        self._changed(job_id)
        return changed

    def _delivery(self, job_id: str, state: str, now: float) -> dict[str, Any]:
        kind = "video.completed" if state == COMPLETED else "video.failed"
        body = {"id": f"evt_{job_id}", "object": "event", "created_at": int(now), "type": kind, "data": {"id": job_id}}
        return {"id": body["id"], "replica": self.replica, "body": json.dumps(body), "attempts": 0, "next_at": now}

    def overdue(self, before: float) -> list[Job]:
        """Jobs of this replica that wait since before that time."""
        late = (jobs.c.replica == self.replica) & (jobs.c.state == QUEUED) & (jobs.c.created_at < before)
        return self._all(sa.select(jobs).where(late))

    def _change(self, job_id: str, states: Sequence[str], values: dict[str, Any]) -> bool:
        with self.writing() as connection:
            changed = connection.execute(
                jobs.update().where(jobs.c.id == job_id, jobs.c.state.in_(states)).values(values)
            )
        self._changed(job_id)
        return changed.rowcount == 1

    def _changed(self, job_id: str) -> None:
        """What is known of a job is no longer so; nor is what others are just reading of it."""
        with self._knowing:
            self._changes += 1
            self._known.pop(job_id, None)

    # ---- out ----

    def get(self, job_id: str) -> Job | None:
        """The job of that id."""
        with self._knowing:
            known, changes = self._known.get(job_id), self._changes
        if known is not None or "\x00" in job_id:
            return known
        job = self._first(sa.select(jobs).where(jobs.c.id == job_id))
        if job is not None and job.replica == self.replica:
            with self._knowing:
                if changes == self._changes:
                    if len(self._known) >= KNOWN:
                        self._known.clear()
                    self._known[job_id] = job
        return job

    def page(
        self, owner: str | None, *, after: str | None, limit: int, ascending: bool, kind: str = "video"
    ) -> list[Job]:
        """At most `limit` jobs of `owner` (None: of everybody), by time, those beyond the id `after`."""
        query = sa.select(jobs).where(jobs.c.kind == kind)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if after is not None:
            after = after.replace("\x00", "")
            query = query.where(jobs.c.id > after if ascending else jobs.c.id < after)
        return self._all(query.order_by(jobs.c.id if ascending else jobs.c.id.desc()).limit(limit))

    def _all(self, query: sa.Select[Any]) -> list[Job]:
        with self.engine.connect() as connection:
            return [Job.of(row) for row in connection.execute(query).mappings()]

    def waiting(self) -> int:
        """How many jobs of this replica wait."""
        return self._count(QUEUED)

    def _count(self, state: str) -> int:
        query = sa.select(sa.func.count()).where(jobs.c.replica == self.replica, jobs.c.state == state)
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def position(self, job: Job) -> int:
        """How many jobs will be begun before a job that waits."""
        ahead = sa.or_(
            jobs.c.priority > job.priority,
            sa.and_(jobs.c.priority == job.priority, jobs.c.created_at < job.created_at),
        )
        query = sa.select(sa.func.count()).where(jobs.c.replica == job.replica, jobs.c.state == QUEUED, ahead)
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def ended_before(self, before: float) -> list[Job]:
        """Jobs of this replica that ended before that time."""
        old = (jobs.c.replica == self.replica) & jobs.c.state.in_(ENDED) & (jobs.c.ended_at < before)
        return self._all(sa.select(jobs).where(old))

    def beyond(self, nbytes: float) -> list[Job]:
        """The oldest jobs of this replica without which the files of the others fit into `nbytes`."""
        query = sa.select(jobs).where(jobs.c.replica == self.replica, jobs.c.nbytes > 0)
        total, old = 0, []
        for job in self._all(query.order_by(jobs.c.ended_at.desc())):
            total += job.nbytes
            if total > nbytes:
                old.append(job)
        return old

    def delete(self, job_id: str) -> bool:
        """Forget a job that ended. Whether it had."""
        with self.writing() as connection:
            gone = connection.execute(jobs.delete().where(jobs.c.id == job_id, jobs.c.state.in_(ENDED)))
        self._changed(job_id)
        return gone.rowcount == 1

    def forget_keys(self, before: float) -> None:
        """Forget idempotency keys that were used before that time."""
        with self.writing() as connection:
            connection.execute(idempotency.delete().where(idempotency.c.created_at < before))

    # ---- webhooks ----

    def due_deliveries(self) -> list[Mapping[str, Any]]:
        """Webhook calls whose time has come."""
        due = (deliveries.c.replica == self.replica) & (deliveries.c.next_at <= time.time())
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(deliveries).where(due).limit(20)).mappings()]

    def delivered(self, delivery_id: str) -> None:
        """A webhook call was made, or is given up."""
        with self.writing() as connection:
            connection.execute(deliveries.delete().where(deliveries.c.id == delivery_id))

    def retry_delivery(self, delivery_id: str, attempts: int, next_at: float) -> None:
        """A webhook call failed, and is made again at `next_at`."""
        with self.writing() as connection:
            values = {"attempts": attempts, "next_at": next_at}
            connection.execute(deliveries.update().where(deliveries.c.id == delivery_id).values(values))
