"""The tables of a server's database, and a job as a value."""

import json
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED = "queued", "in_progress", "completed", "failed", "cancelled"
OPEN, ENDED = (QUEUED, RUNNING), (COMPLETED, FAILED, CANCELLED)

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs", metadata,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("kind", sa.String(10), nullable=False),
    sa.Column("replica", sa.String(20), nullable=False),
    sa.Column("owner", sa.String(40), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("sampling", sa.Text, nullable=False),
    sa.Column("remixed_from", sa.String(80)),
    sa.Column("progress", sa.Integer, nullable=False, default=0),
    sa.Column("error", sa.Text),
    sa.Column("files", sa.Text, nullable=False, default="{}"),
    sa.Column("nbytes", sa.BigInteger, nullable=False, default=0),
    sa.Column("result", sa.Text, nullable=False, default="{}"),
    sa.Index("jobs_queue", "replica", "state", "priority", "id"),
    sa.Index("jobs_owner", "owner", "id"),
)  # fmt: skip
"""One row a job. `request` is what the client wrote, `sampling` what it came to; both JSON, as `error`, `files`,
`result`."""

idempotency = sa.Table(
    "idempotency", metadata,
    sa.Column("owner", sa.String(40), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("job", sa.String(80), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)  # fmt: skip
"""Requests that were sent with an `Idempotency-Key`, and the job that each became."""

api_keys = sa.Table(
    "api_keys", metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("max_jobs", sa.Integer),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("revoked_at", sa.Float),
)  # fmt: skip
"""Keys, as their SHA-256: a key is 256 random bits, which nobody finds by trying."""

deliveries = sa.Table(
    "deliveries", metadata,
    sa.Column("id", sa.String(80), primary_key=True),
    sa.Column("replica", sa.String(20), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("next_at", sa.Float, nullable=False),
)  # fmt: skip
"""Webhook calls that have to be made."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of `jobs`."""

    id: str
    kind: str
    replica: str
    owner: str
    state: str
    priority: int
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    attempts: int = 0
    model: str
    prompt: str
    request: dict[str, Any]
    sampling: dict[str, Any]
    remixed_from: str | None = None
    progress: int = 0
    error: dict[str, Any] | None = None
    files: dict[str, dict[str, Any]]
    nbytes: int = 0
    result: dict[str, Any]

    @classmethod
    def of(cls, row: Any) -> "Job":
        """The job of a row."""
        values = dict(row)
        for name in ("request", "sampling", "files", "result"):
            values[name] = json.loads(values[name])
        values["error"] = json.loads(values["error"]) if values["error"] else None
        return cls(**values)

    def row(self) -> dict[str, Any]:
        """The row of this job."""
        values = dict(vars(self))
        for name in ("request", "sampling", "files", "result"):
            values[name] = json.dumps(values[name])
        values["error"] = json.dumps(self.error) if self.error else None
        return values


class Ids:
    """Ids that sort by when they were given, and say which replica gave them: `video_<time><random>_<replica>`."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._last = 0
        self._lock = threading.Lock()

    def new(self, prefix: str = "video") -> str:
        """The next."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1000)
            stamp = self._last
        return f"{prefix}_{stamp:015x}{secrets.token_hex(10)}_{self._replica}"


ID_PATTERN = r"^(video|image)_[0-9a-f]{35}_[a-z0-9]{1,20}$"


def replica_of(job_id: str) -> str:
    """The name of the replica that gave `job_id`."""
    return job_id.rpartition("_")[2]
