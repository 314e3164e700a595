"""Videos that can be watched while they are made: fragmented MP4, for models that make frames chunk by chunk."""

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from starlette.concurrency import run_in_threadpool

from fastvideo.entrypoints.media import BT709, LIMITED_RANGE
from fastvideo.entrypoints.serve.files import CHUNK, FileStore
from fastvideo.entrypoints.serve.making import before
from fastvideo.entrypoints.serve.records import OPEN, Job

if TYPE_CHECKING:
    from fastvideo.entrypoints.serve.context import Server

LOOK_SECONDS = 0.1
"""Between two looks at whether a file has grown."""
FRAGMENTS = "empty_moov+default_base_moof+frag_every_frame+skip_trailer"
"""No index in front, and each frame written as soon as the next is there (ISO 14496-12, 8.8)."""
BLOCK = 1 << 15
"""Chromium's player sees what it loads in blocks of so many bytes, and nothing of one that is not full."""


class FragmentedMP4:
    """An MP4 that is whole after each chunk that is added: players show it while it grows."""

    def __init__(self, path: Path, fps: int) -> None:
        import av

        self._file = path.open("ab", buffering=0)
        options = {"movflags": FRAGMENTS, "flush_packets": "1"}
        self._container = av.open(self._file, "w", format="mp4", options=options)
        self._fps = fps
        self._stream: Any = None
        self._count = 0

    def add(self, frames: npt.NDArray[np.uint8]) -> None:
        """Append frames [T, H, W, 3]; the last one of them shows once others follow, or the file is closed."""
        import av

        even = np.pad(frames, [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)], mode="edge")
        if self._stream is None:
            self._stream = self._opened(even.shape[1], even.shape[2])
        for image in even:
            rgb = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = rgb.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE, threads=1)
            frame.color_primaries = frame.color_trc = frame.colorspace = BT709
            frame.color_range = LIMITED_RANGE
            frame.pts, frame.time_base = self._count, Fraction(1, self._fps)
            self._count += 1
            self._container.mux(self._stream.encode(frame))
        self._fill()

    def _fill(self) -> None:
        """End a block, with a box that players skip."""
        lacking = -self._file.tell() % BLOCK
        if lacking:
            lacking += BLOCK if lacking < 8 else 0
            self._file.write(struct.pack(">I4s", lacking, b"free") + bytes(lacking - 8))

    def _opened(self, height: int, width: int) -> Any:
        # no look ahead, or frames would wait in the encoder
        options = {"crf": "20", "preset": "veryfast", "tune": "zerolatency", "threads": "1"}
        stream = self._container.add_stream("libx264", rate=self._fps, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        return stream

    def close(self) -> None:
        """Write what is left."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        self._file.close()


class Streams:
    """Where the files lie that grow, by job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[str, Path] = {}

    def path(self, job_id: str) -> Path | None:
        """Of a job that runs here, and whose model makes frames chunk by chunk."""
        with self._lock:
            return self._paths.get(job_id)

    @contextmanager
    def growing(self, job: Job, folder: Path, files: FileStore) -> Iterator[Callable[[Any], None]]:
        """Within the block, what takes the chunks of a job, for those who watch. The file is in `folder`, and begins
        with the video that the job continues, if there is one in `files`."""
        path = folder / "stream.mp4"
        made = FragmentedMP4(path, job.sampling["fps"])
        video = before(job, files, folder)
        repeated = 0 if video is None else video.repeated
        if video is not None:
            made.add(video.frames)

        def add(chunk: Any) -> None:
            new = chunk.frames[max(0, repeated - chunk.start) :]
            if len(new):
                made.add(new)

        with self._lock:
            self._paths[job.id] = path
        try:
            yield add
        finally:
            made.close()
            with self._lock:
                del self._paths[job.id]


async def watched(server: "Server", job_id: str) -> AsyncIterator[bytes]:
    """The bytes of a job's file from its first to its last, as they come; waits while the job does."""
    streams = server.runner.streams
    while (path := streams.path(job_id)) is None:
        job = await run_in_threadpool(server.store.get, job_id)
        if job is None or job.state not in OPEN or server.closing.is_set():
            return
        await asyncio.sleep(LOOK_SECONDS)
    try:
        file = await run_in_threadpool(path.open, "rb")
    except FileNotFoundError:  # the job has ended just now
        return
    with file:
        while True:
            lives = streams.path(job_id) == path
            piece = await run_in_threadpool(file.read, CHUNK)
            if piece:
                yield piece
            elif not lives or server.closing.is_set():
                return
            else:
                await asyncio.sleep(LOOK_SECONDS)
