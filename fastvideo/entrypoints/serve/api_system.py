"""Everything beside videos: images, models, health, metrics."""

import base64
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from fastvideo.entrypoints.serve.api_videos import body_schema
from fastvideo.entrypoints.serve.auth import Access
from fastvideo.entrypoints.serve.body import parsed, read_body
from fastvideo.entrypoints.serve.context import Server
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.files import read_all
from fastvideo.entrypoints.serve.keys import Caller
from fastvideo.entrypoints.serve.waiting import wait_for_end


class ImageRequest(BaseModel):
    """Images to make: videos of one frame."""

    model_config = ConfigDict(extra="forbid", title="CreateImage")
    prompt: str = Field(min_length=1, description="What to show.")
    model: str | None = Field(None, description="One of /v1/models.")
    n: int | None = Field(None, ge=1, le=10, description="How many.")
    size: str | None = Field(None, pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$", description="WIDTHxHEIGHT.")
    quality: Literal["low", "medium", "high", "auto", "standard", "hd"] | None = None
    response_format: Literal["b64_json"] | None = Field(None, description="The only one there is.")
    output_format: Literal["png"] | None = Field(None, description="The only one there is.")
    seed: int | None = Field(None, description="Of the initial noise.")
    user: str | None = Field(None, description="Not used.")


def system_routes(server: Server, access: Access) -> APIRouter:
    """The routes of one server."""
    router = APIRouter(tags=["system"])
    read, write = access.needs("read"), access.needs("write")

    @router.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server lives."""
        return {"status": "ok"}

    @router.get("/ready")
    def ready() -> JSONResponse:
        """Whether the model is loaded: 503 until then. What a router needs to know is there too."""
        loaded = server.planner is not None and server.runner.is_alive()
        state = {"status": "ready" if loaded else "loading", "replica": server.settings.replica,
                 "models": server.names, "waiting": server.store.waiting(),
                 "running": int(server.runner.current is not None)}  # fmt: skip
        return JSONResponse(state, 200 if loaded else 503, None if loaded else {"Retry-After": "5"})

    @router.get("/metrics", response_class=Response)
    def metrics(caller: Annotated[Caller, Depends(access.needs("metrics"))]) -> Response:
        """Numbers for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/v1/models")
    def models(caller: Annotated[Caller, Depends(read)]) -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [model_of(server, name) for name in server.names]}

    @router.get("/v1/models/{name:path}")
    def model(name: str, caller: Annotated[Caller, Depends(read)]) -> dict[str, Any]:
        """A model that is served."""
        if name not in server.names:
            raise ApiError(404, f"{name!r}: no such model; there is {', '.join(server.names)}", code="model_not_found")
        return model_of(server, name)

    @router.post("/v1/images/generations", openapi_extra=body_schema(ImageRequest))
    async def images(request: Request, caller: Annotated[Caller, Depends(write)]) -> dict[str, Any]:
        """Make images and wait for them; a client that goes away cancels them."""
        asked = parsed(ImageRequest, (await read_body(request)).fields)
        size = None if asked.size == "auto" else asked.size
        if asked.model is not None and asked.model not in server.names:
            raise ApiError(400, f"model: {asked.model!r} is not served here; there is {', '.join(server.names)}",
                           param="model", code="model_not_found")  # fmt: skip
        plan = await run_in_threadpool(server.plans.image, asked.prompt, size, asked.n or 1, asked.quality, asked.seed)
        job, _ = await run_in_threadpool(server.submit, plan, caller, kind="image")
        ended = await wait_for_end(server, job.id, request)
        names = [file["name"] for file in ended.files.values()]
        pictures = [await run_in_threadpool(read_all, server.files, name) for name in names]
        return {
            "created": int(time.time()), "output_format": "png",
            "size": f"{ended.sampling['width']}x{ended.sampling['height']}",
            "data": [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures],
        }  # fmt: skip

    return router


def model_of(server: Server, name: str) -> dict[str, Any]:
    """The object `model`."""
    return {"id": name, "object": "model", "created": server.started_at, "owned_by": "fastvideo"}
