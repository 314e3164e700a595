"""Parts of files that lie elsewhere: the header `Range` (RFC 9110, section 14), which players send to seek."""

import re
from collections.abc import AsyncIterator, Mapping

from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from fastvideo.entrypoints.serve.files import FileStore


def asked_part(header: str | None, nbytes: int) -> tuple[int, int] | None:
    """The first byte, and the one after the last, that a `Range` asks for. None is the whole file, also where the
    header has a form that need not be heeded: another unit, or several parts.

    Raises:
        ValueError: no byte of the file is in it.
    """
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").replace(" ", ""))
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(0, nbytes - int(last)), nbytes
    else:
        start, end = int(first), min(nbytes, int(last) + 1) if last else nbytes
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise ValueError(f"{header}: the file has {nbytes} bytes")
    return start, end


def remote_file(
    files: FileStore, name: str, nbytes: int, kind: str, headers: Mapping[str, str], asked: str | None
) -> Response:
    """The answer with a file of `nbytes`, or with the part of it that was `asked` for, read piece by piece."""
    given = {**headers, "Accept-Ranges": "bytes"}
    try:
        part = asked_part(asked, nbytes)
    except ValueError:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{nbytes}"})
    start, end = part or (0, nbytes)
    if part is not None:
        given["Content-Range"] = f"bytes {start}-{end - 1}/{nbytes}"
    given["Content-Length"] = str(end - start)
    body = _pieces(files, name, start, end)
    return StreamingResponse(body, 200 if part is None else 206, media_type=kind, headers=given)


async def _pieces(files: FileStore, name: str, start: int, end: int) -> AsyncIterator[bytes]:
    reading = files.read(name, start, end)
    while (piece := await run_in_threadpool(next, reading, b"")) != b"":
        yield piece
