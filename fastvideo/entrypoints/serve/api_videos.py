"""`/v1/videos`: as the official `openai` package speaks it, and what we have beside it."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from fastvideo.entrypoints.serve.auth import Access
from fastvideo.entrypoints.serve.body import Body, parsed, read_body
from fastvideo.entrypoints.serve.context import Server
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.growing import watched
from fastvideo.entrypoints.serve.intake import given_by, references_of
from fastvideo.entrypoints.serve.keys import Caller
from fastvideo.entrypoints.serve.ranges import remote_file
from fastvideo.entrypoints.serve.records import COMPLETED, OPEN, Job
from fastvideo.entrypoints.serve.references import VIDEO
from fastvideo.entrypoints.serve.requests import REFERENCES, EditRequest, ExtendRequest, RemixRequest, VideoRequest
from fastvideo.entrypoints.serve.views import Deleted, Video, VideoList, status_of
from fastvideo.entrypoints.serve.waiting import wait_for_end

POLL_MS = "500"
"""How soon a client should ask again, in the header that the `openai` package heeds."""
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
Variant = Literal["video", "thumbnail", "spritesheet"]


def body_schema(model: type[Any]) -> dict[str, Any]:
    """The body of `model` in the OpenAPI document, which is JSON or a form; references may be uploads in a form."""
    json_schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    json_schema.pop("$defs", None)
    form = dict(json_schema)
    uploads = {
        name: {"anyOf": [{"type": "string", "format": "binary"}, {"$ref": "#/components/schemas/Link"}],
               "description": model.model_fields[name].description}
        for name in REFERENCES if name in model.model_fields
    }  # fmt: skip
    form["properties"] = json_schema["properties"] | uploads
    content = {"application/json": {"schema": json_schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def video_routes(server: Server, access: Access) -> APIRouter:
    """The routes of one server."""
    router = APIRouter(prefix="/v1/videos", tags=["videos"])
    read, write = access.needs("read"), access.needs("write")
    _making_routes(router, server, write)
    _looking_routes(router, server, read)
    _changing_routes(router, server, write)
    return router


def _making_routes(router: APIRouter, server: Server, write: Callable[..., Caller]) -> None:
    async def submitted(request: Request, caller: Caller, key: str | None) -> tuple[Job, bool]:
        body = await read_body(request, REFERENCES)
        return await run_in_threadpool(submit_video, server, body, caller, key)

    @router.post("", response_model=Video, openapi_extra=body_schema(VideoRequest))
    async def create(
        request: Request, caller: Annotated[Caller, Depends(write)], idempotency_key: IdempotencyKey = None
    ) -> JSONResponse:
        """Queue a video."""
        job, new = await submitted(request, caller, idempotency_key)
        headers = {"openai-poll-after-ms": POLL_MS} | ({} if new else {"Idempotent-Replayed": "true"})
        return JSONResponse(await run_in_threadpool(server.show, job), headers=headers)

    @router.post("/sync", response_class=Response, openapi_extra=body_schema(VideoRequest),
                 responses={200: {"content": {"video/mp4": {}}}})  # fmt: skip
    async def create_sync(
        request: Request, caller: Annotated[Caller, Depends(write)], idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Make a video and give the file; a client that goes away cancels it."""
        job, new = await submitted(request, caller, idempotency_key)
        ended = await wait_for_end(server, job.id, request if new else None)
        return content_response(server, ended, "video", {"X-Video-Id": job.id})

    @router.post("/{video_id}/remix", response_model=Video, openapi_extra=body_schema(RemixRequest))
    async def remix(
        video_id: str, request: Request, caller: Annotated[Caller, Depends(write)],
        idempotency_key: IdempotencyKey = None,
    ) -> JSONResponse:  # fmt: skip
        """Make a video again, with another prompt and all else the same."""
        body = await read_body(request)
        job = await run_in_threadpool(submit_remix, server, video_id, body, caller, idempotency_key)
        return JSONResponse(await run_in_threadpool(server.show, job), headers={"openai-poll-after-ms": POLL_MS})

    @router.post("/edits", response_model=Video, openapi_extra=body_schema(EditRequest))
    async def edit(
        request: Request, caller: Annotated[Caller, Depends(write)], idempotency_key: IdempotencyKey = None
    ) -> JSONResponse:
        """Make a video from a video, where the model takes one: an upload, or the id of one that is completed."""
        body = await read_body(request, REFERENCES)
        job = await run_in_threadpool(submit_edit, server, body, caller, idempotency_key)
        return JSONResponse(await run_in_threadpool(server.show, job), headers={"openai-poll-after-ms": POLL_MS})

    @router.post("/extensions", response_model=Video, openapi_extra=body_schema(ExtendRequest))
    async def extend(
        request: Request, caller: Annotated[Caller, Depends(write)], idempotency_key: IdempotencyKey = None
    ) -> JSONResponse:
        """Make a video longer, where the model starts from an image or goes on from frames: joined to it."""
        body = await read_body(request, ("video",))
        job = await run_in_threadpool(submit_extension, server, body, caller, idempotency_key)
        return JSONResponse(await run_in_threadpool(server.show, job), headers={"openai-poll-after-ms": POLL_MS})


def submit_video(server: Server, body: Body, caller: Caller, key: str | None) -> tuple[Job, bool]:
    """Queue what `body` asks for."""
    plans = server.plans
    asked = parsed(VideoRequest, body.fields)
    if "video" in body.uploads:
        raise ApiError(
            400, "video: no such field; POST /v1/videos/edits has it", param="video", code="unknown_parameter"
        )
    plan = plans.video(asked, given_by(server, asked, body, caller))
    return server.submit(plan, caller, key=key, digest=body.digest)


def submit_edit(server: Server, body: Body, caller: Caller, key: str | None) -> Job:
    """Queue an edit."""
    plans = server.plans
    plans.kinds("video")
    asked = parsed(EditRequest, body.fields)
    plan = plans.video(asked, given_by(server, asked, body, caller))
    return server.submit(plan, caller, key=key, digest=f"edit {body.digest}")[0]


def submit_extension(server: Server, body: Body, caller: Caller, key: str | None) -> Job:
    """Queue an extension."""
    plans = server.plans
    plans.check_extends()
    asked = parsed(ExtendRequest, body.fields)
    plan = plans.extension(asked, given_by(server, asked, body, caller, {"video": (VIDEO,)}))
    return server.submit(plan, caller, key=key, digest=f"extend {body.digest}")[0]


def submit_remix(server: Server, video_id: str, body: Body, caller: Caller, key: str | None) -> Job:
    """Queue a remix."""
    plans = server.plans
    prompt = parsed(RemixRequest, body.fields).prompt
    source = server.job(video_id, caller)
    if source.state != COMPLETED:
        raise ApiError(400, f"video_id: {source.id} is {status_of(source)}; only a completed video can be remixed",
                       param="video_id", code="not_completed")  # fmt: skip
    plan = plans.remix(prompt, source.sampling, references_of(server, source))
    return server.submit(plan, caller, remixed_from=source.id, key=key, digest=f"{source.id} {body.digest}")[0]


def _looking_routes(router: APIRouter, server: Server, read: Callable[..., Caller]) -> None:
    @router.get("", response_model=VideoList)
    def list_videos(
        caller: Annotated[Caller, Depends(read)],
        after: Annotated[str | None, Query(max_length=80)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> JSONResponse:
        """The caller's videos, a page at a time."""
        found = server.store.page(caller.sees, after=after, limit=limit + 1, ascending=order == "asc")
        shown = [server.show(job) for job in found[:limit]]
        ids = [video["id"] for video in shown]
        return JSONResponse({
            "object": "list", "data": shown, "first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None,
            "has_more": len(found) > limit,
        })  # fmt: skip

    @router.get("/{video_id}", response_model=Video)
    def retrieve(video_id: str, caller: Annotated[Caller, Depends(read)]) -> JSONResponse:
        """A video, as it is now."""
        return JSONResponse(server.show(server.job(video_id, caller)), headers={"openai-poll-after-ms": POLL_MS})

    @router.get("/{video_id}/content", response_class=Response, responses={200: {"content": {"video/mp4": {}}}})
    def content(
        video_id: str, request: Request, caller: Annotated[Caller, Depends(read)], variant: Variant = "video"
    ) -> Response:
        """The file of a completed video, its thumbnail, or a sheet of its frames."""
        part = request.headers.get("range")
        return content_response(server, server.job(video_id, caller), variant, part=part)

    @router.get("/{video_id}/stream", response_class=Response, responses={200: {"content": {"video/mp4": {}}}})
    def stream(video_id: str, request: Request, caller: Annotated[Caller, Depends(read)]) -> Response:
        """A video while it is made, as fragmented MP4, where the model makes it chunk by chunk; then its file."""
        return stream_response(server, server.job(video_id, caller), request.headers.get("range"))


def _changing_routes(router: APIRouter, server: Server, write: Callable[..., Caller]) -> None:
    @router.post("/{video_id}/cancel", response_model=Video)
    def cancel(video_id: str, caller: Annotated[Caller, Depends(write)]) -> JSONResponse:
        """Cancel a video: at once while it waits, at its next step while it is made. Twice is the same as once."""
        job = server.job(video_id, caller)
        if job.state in OPEN and not server.runner.cancel(job.id):
            job = server.job(video_id, caller)
            if job.state in OPEN:
                raise ApiError(409, f"{job.id}: is made by another server, {job.replica}", code="other_replica")
        return JSONResponse(server.show(server.job(video_id, caller)))

    @router.delete("/{video_id}", response_model=Deleted)
    def delete(video_id: str, caller: Annotated[Caller, Depends(write)]) -> dict[str, Any]:
        """Delete a video that has ended, and its files."""
        job = server.job(video_id, caller)
        server.delete(job)
        return {"id": job.id, "object": "video.deleted", "deleted": True}


def content_response(
    server: Server, job: Job, variant: str, headers: dict[str, str] | None = None, part: str | None = None
) -> Response:
    """A file of a job, or the `part` of it that the header `Range` names.

    Raises:
        ApiError: 404; it is not there.
    """
    if job.state != COMPLETED:
        raise ApiError(404, f"{job.id}: is {status_of(job)}; there is no file", code="not_completed")
    file = job.files[variant]
    path = server.files.path(file["name"])
    more = {"Content-Disposition": f'inline; filename="{file["name"]}"', "Cache-Control": "private, max-age=3600",
            "X-Content-Type-Options": "nosniff", **(headers or {})}  # fmt: skip
    if path is not None:
        if not path.is_file():
            raise ApiError(404, f"{job.id}: its file is gone", code="file_gone")
        return FileResponse(path, media_type=file["type"], headers=more)
    return remote_file(server.files, file["name"], file["bytes"], file["type"], more, part)


def stream_response(server: Server, job: Job, part: str | None = None) -> Response:
    """A video that grows; once it is whole, of its file the `part` that a `Range` header names.

    Raises:
        ApiError: 400, the model makes all frames at once; 404, it failed; 409, another server makes it.
    """
    if job.state not in OPEN:
        return content_response(server, job, "video", part=part)
    if not server.plans.streams:
        raise ApiError(400, f"{job.id}: {server.names[0]} makes all frames at once; wait for the video",
                       code="unsupported_by_model")  # fmt: skip
    if job.replica != server.settings.replica:
        raise ApiError(409, f"{job.id}: is made by another server, {job.replica}", code="other_replica")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(watched(server, job.id), media_type="video/mp4", headers=headers)
