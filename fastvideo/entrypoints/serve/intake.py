"""From what a client sent to the images and videos of a request."""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel

from fastvideo.entrypoints.serve.body import Body
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.fetch import fetch
from fastvideo.entrypoints.serve.files import read_all
from fastvideo.entrypoints.serve.keys import Caller
from fastvideo.entrypoints.serve.records import COMPLETED, Job
from fastvideo.entrypoints.serve.references import BY_MIME, Look, Reference, looked_at
from fastvideo.entrypoints.serve.requests import REFERENCES, Link, bad
from fastvideo.entrypoints.serve.settings import MB
from fastvideo.entrypoints.serve.views import status_of

if TYPE_CHECKING:
    from fastvideo.entrypoints.serve.context import Server

PREFIX = "input-"
"""What the names of parts of a job begin with that it was made from."""


def given_by(
    server: "Server", asked: BaseModel, body: Body, caller: Caller, kinds: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, Reference]:
    """The images and videos of a request, by the field; each was looked at.

    Args:
        server: whose model and whose limits count.
        asked: the fields of `body`.
        body: what the client sent.
        caller: whose videos may be named.
        kinds: what a field may be; otherwise what the model takes there.

    Raises:
        ApiError: 400, with the field; 404 for a video that is not the caller's.
    """
    found = {}
    for name in REFERENCES:
        link: Link | None = getattr(asked, name, None)
        if link is None and name not in body.uploads:
            continue
        may = (kinds or {}).get(name) or server.plans.kinds(name)
        data = body.uploads[name] if link is None else _linked(server, link, name, caller)
        found[name] = looked_at(data, name, may, server.settings)
    return found


def _linked(server: "Server", link: Link, name: str, caller: Caller) -> bytes:
    url = link.image_url or link.video_url
    if url is None:
        return _of_job(server, str(link.file_id or link.id), name, caller)
    if url[:5].lower() == "data:":
        return data_of(url, name)
    settings = server.settings
    if not settings.reference_urls:
        raise ApiError(400, f"{name}: this server fetches no URLs; send the file, or a data URL",
                       param=name, code="url_not_allowed")  # fmt: skip
    return fetch(url, name, most_bytes=int(settings.max_upload_mb * MB), seconds=settings.reference_url_seconds)


def _of_job(server: "Server", job_id: str, name: str, caller: Caller) -> bytes:
    job = server.store.get(job_id)
    if job is None or caller.sees not in (None, job.owner) or job.kind != "video":
        raise bad(name, f"{job_id!r} is no video of yours; give the id of one, or send the file")
    if job.state != COMPLETED:
        raise ApiError(400, f"{name}: {job.id} is {status_of(job)}; only a completed video can be used",
                       param=name, code="not_completed")  # fmt: skip
    try:
        return read_all(server.files, job.files["video"]["name"])
    except FileNotFoundError:
        raise bad(name, f"the file of {job.id} is gone") from None


def data_of(url: str, name: str) -> bytes:
    """What a data URL holds (RFC 2397). Its type counts for nothing: what the data is shows in it.

    Raises:
        ApiError: 400; it is not well formed.
    """
    head, comma, data = url[5:].partition(",")
    try:
        if not comma:
            raise ValueError
        raw = unquote_to_bytes(data)
        return base64.b64decode(raw, validate=True) if head.lower().endswith(";base64") else raw
    except (ValueError, binascii.Error):
        raise bad(name, "is no well-formed data URL") from None


def kept(server: "Server", job_id: str, inputs: Mapping[str, Reference]) -> dict[str, dict[str, Any]]:
    """Put what a job is made from beside its files to be; gives the parts, as `Job.files` has them."""
    parts = {}
    for name, reference in inputs.items():
        file = f"{job_id}.{PREFIX}{name}{reference.form.suffix}"
        nbytes = server.files.write(reference.data, file, server.scratch)
        digest = hashlib.sha256(reference.data).hexdigest()
        parts[PREFIX + name] = {"name": file, "bytes": nbytes, "type": reference.form.mime, "sha256": digest,
                                "look": vars(reference.look)}  # fmt: skip
    return parts


def inputs_of(job: Job) -> dict[str, dict[str, Any]]:
    """The parts that a job is made from, by the names in `MEDIA`, and `EXTENDS`."""
    return {name.removeprefix(PREFIX): part for name, part in job.files.items() if name.startswith(PREFIX)}


def references_of(server: "Server", job: Job) -> dict[str, Reference]:
    """What a job was made from, for another job.

    Raises:
        ApiError: 404; a file is gone.
    """
    try:
        return {
            name: Reference(read_all(server.files, part["name"]), BY_MIME[part["type"]], Look(**part["look"]))
            for name, part in inputs_of(job).items()
        }
    except FileNotFoundError:
        raise ApiError(404, f"{job.id}: a file that it was made from is gone", code="file_gone") from None


def drop(server: "Server", parts: Iterable[dict[str, Any]]) -> None:
    """Delete the files of parts."""
    for part in parts:
        server.files.delete(part["name"])
