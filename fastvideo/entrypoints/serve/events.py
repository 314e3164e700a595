"""What happens to jobs, told as it happens: from the thread that works to whoever listens in the event loop."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Event = dict[str, Any]
BACKLOG = 100
"""Events that a slow listener may be behind; then it misses the oldest."""
ENDS = ("video.completed", "video.failed")


class Hub:
    """Passes events on. Any thread may publish; listeners live in event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[str, Event] = {}
        self._listeners: dict[str, list[Listener]] = {}

    def publish(self, job_id: str, event: Event) -> None:
        """Tell all who listen to `job_id`."""
        with self._lock:
            if event["type"] in ENDS:
                self._latest.pop(job_id, None)
            else:
                # a listener that comes later sees the preview that there is
                kept = {"preview": self._latest[job_id]["preview"]} if "preview" in self._latest.get(job_id, {}) else {}
                self._latest[job_id] = kept | event
            listeners = list(self._listeners.get(job_id, ()))
        for listener in listeners:
            listener.tell(event)

    def latest(self, job_id: str) -> Event | None:
        """The last event of a job that runs here."""
        with self._lock:
            return self._latest.get(job_id)

    @property
    def watched(self) -> int:
        """How many jobs somebody listens to."""
        with self._lock:
            return len(self._listeners)

    @contextmanager
    def listening(self, job_id: str) -> Iterator["Listener"]:
        """Listens to `job_id` within the block, in the running event loop."""
        listener = Listener(asyncio.get_running_loop())
        with self._lock:
            self._listeners.setdefault(job_id, []).append(listener)
        try:
            yield listener
        finally:
            with self._lock:
                others = self._listeners[job_id]
                others.remove(listener)
                if not others:
                    del self._listeners[job_id]


class Listener:
    """One who listens to a job."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[Event] = asyncio.Queue(BACKLOG)

    def tell(self, event: Event) -> None:
        """From any thread."""
        try:
            self._loop.call_soon_threadsafe(self._add, event)
        except RuntimeError:
            return  # its event loop has ended

    def _add(self, event: Event) -> None:
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(event)

    async def next(self, seconds: float) -> Event | None:
        """The next event; None when none came in that time."""
        try:
            return await asyncio.wait_for(self._queue.get(), seconds)
        except asyncio.TimeoutError:
            return None
