"""Waiting for a job: until it ends, or event by event."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from fastvideo.entrypoints.serve.context import Server
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.events import ENDS
from fastvideo.entrypoints.serve.records import CANCELLED, COMPLETED, OPEN, QUEUED, Job
from fastvideo.entrypoints.serve.views import state_event

LOOK_SECONDS = 1.0
"""Between looks at whether the client is still there, and the job too."""
KEEP_ALIVE_SECONDS = 15.0


async def events_of(server: Server, job_id: str) -> AsyncIterator[dict[str, Any] | None]:
    """The events of a job from its state now to its end; None now and then while nothing happens."""
    with server.hub.listening(job_id) as listener:
        job = await run_in_threadpool(server.store.get, job_id)
        if job is None:
            return
        first = state_event(job)
        if job.state == QUEUED:
            first["position"] = await run_in_threadpool(server.store.position, job)
        yield first
        latest = server.hub.latest(job_id)
        if job.state in OPEN and latest is not None and latest["type"] == "video.progress":
            yield latest
        if job.state not in OPEN:
            return
        spoke = time.monotonic()
        while not server.closing.is_set():
            event = await listener.next(LOOK_SECONDS)
            if event is not None:
                spoke = time.monotonic()
                yield event
                if event["type"] in ENDS:
                    return
            elif time.monotonic() - spoke > KEEP_ALIVE_SECONDS:
                spoke = time.monotonic()
                yield None
                job = await run_in_threadpool(server.store.get, job_id)
                if job is None or job.state not in OPEN:
                    # it ended on another replica, or was deleted
                    if job is not None:
                        yield state_event(job)
                    return


async def server_sent(server: Server, job_id: str) -> AsyncIterator[str]:
    """The events of a job as server-sent events."""
    async for event in events_of(server, job_id):
        yield ": still there\n\n" if event is None else f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


async def wait_for_end(server: Server, job_id: str, request: Request | None = None) -> Job:
    """The job, once it is completed. If `request` is given and its client goes away, the job is cancelled.

    Raises:
        ApiError: it failed, or was cancelled; 503 when the server stops.
    """
    watching = asyncio.ensure_future(_wait(server, job_id))
    try:
        while not watching.done():
            await asyncio.wait([watching], timeout=LOOK_SECONDS)
            if request is not None and not watching.done() and await request.is_disconnected():
                await run_in_threadpool(server.runner.cancel, job_id)
                raise ApiError(409, "the client went away", code="cancelled")
    finally:
        watching.cancel()
    job = await run_in_threadpool(server.store.get, job_id)
    if job is None or job.state in OPEN:
        raise ApiError(503, f"{job_id}: the server stops; ask for the job again", code="stopping")
    if job.state == COMPLETED:
        return job
    error = job.error or {"code": "unknown", "message": "the job failed"}
    statuses = {CANCELLED: 409}
    status = statuses.get(job.state, 504 if error["code"] == "timeout" else 500)
    raise ApiError(status, error["message"], code=error["code"])


async def _wait(server: Server, job_id: str) -> None:
    async for _ in events_of(server, job_id):
        continue
