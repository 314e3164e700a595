"""The web application: routes, errors, and what stands before every request."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fastvideo import __version__
from fastvideo.entrypoints.serve.api_events import event_routes
from fastvideo.entrypoints.serve.api_system import system_routes
from fastvideo.entrypoints.serve.api_videos import video_routes
from fastvideo.entrypoints.serve.auth import Access
from fastvideo.entrypoints.serve.body import of_validation
from fastvideo.entrypoints.serve.context import Server
from fastvideo.entrypoints.serve.database import away
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.requests import Link, Lora
from fastvideo.entrypoints.serve.settings import LOOPBACK_NAMES, MB
from fastvideo.entrypoints.serve.studio_mount import add_studio
from fastvideo.logger import init_logger

logger = init_logger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def create_app(server: Server) -> FastAPI:
    """The application of `server`, which starts and stops with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with studio_lives() if studio_lives else nullcontext():
            await run_in_threadpool(server.start)
            yield
            await run_in_threadpool(server.stop)

    app = FastAPI(title="FastVideo", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    access = Access(server.store, server.settings.needs_keys)
    app.include_router(system_routes(server, access))
    app.include_router(video_routes(server, access))
    app.include_router(event_routes(server, access))
    _handle_errors(app, server)
    _describe(app)
    studio_lives = add_studio(app, server)
    app.add_middleware(Gate, server=server)
    if server.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=server.settings.cors_origins, allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
        )  # fmt: skip
    return app


def _handle_errors(app: FastAPI, server: Server) -> None:
    def answer(error: ApiError) -> Response:
        if error.status in (401, 403, 413, 429):
            server.metrics.refused.labels(str(error.status)).inc()
        return error.response()

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        status = 400 if error.status_code == 422 else error.status_code
        words = {404: f"{request.url.path}: there is no such page", 405: f"{request.method}: is not possible here"}
        return answer(ApiError(status, words.get(status, str(error.detail)), headers=dict(error.headers or {})))

    @app.exception_handler(SQLAlchemyError)
    async def database_away(request: Request, error: SQLAlchemyError) -> Response:
        if not away(error):
            raise error
        return answer(ApiError(503, "the database is away", code="database_away", headers={"Retry-After": "5"}))

    @app.exception_handler(Exception)
    async def crash(request: Request, error: Exception) -> Response:
        # what went wrong is the log's to tell; uvicorn writes it there
        return answer(ApiError(500, "the server failed; its log says why", code="server_error"))


def _describe(app: FastAPI) -> None:
    """Put the types that bodies refer to into the OpenAPI document."""
    document = app.openapi()
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= {"Lora": Lora.model_json_schema(), "Link": Link.model_json_schema()}


class Gate:
    """Before every request: its size, where it comes from when nobody needs a key, and how long it takes."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], server: Server) -> None:
        self._app = app
        self._server = server
        self._most = int(server.settings.max_upload_mb * MB)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal is not None:
            await self._refuse(refusal, scope, receive, send)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._measured(scope, self._limited(receive), send)

    def _refusal(self, headers: dict[str, str]) -> ApiError | None:
        length = headers.get("content-length", "0")
        if not length.isdigit():
            return ApiError(400, "Content-Length: must be a number", param="Content-Length", code="invalid_value")
        if int(length) > self._most:
            return self._too_large()
        if self._server.settings.needs_keys:
            return None
        # a page of any site can reach this machine through its visitor's browser, and so can a name that lies
        name = urlsplit(f"//{headers.get('host', '')}").hostname
        if name not in (*LOOPBACK_NAMES, self._server.settings.host):
            return ApiError(403, f"Host: {name!r} is not this server", param="Host", code="wrong_host")
        origin = headers.get("origin")
        if origin is None or origin in self._server.settings.cors_origins:
            return None
        if urlsplit(origin).netloc != headers.get("host"):
            return ApiError(403, f"Origin: pages of {origin} may not use this server", param="Origin",
                            code="wrong_origin")  # fmt: skip
        return None

    def _too_large(self) -> ApiError:
        limit = self._server.settings.max_upload_mb
        return ApiError(413, f"the body is larger than {limit:g} MB", code="too_large")

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": error.message[:100]})
            return
        self._server.metrics.refused.labels(str(error.status)).inc()
        await error.response()(scope, receive, send)

    def _limited(self, receive: Receive) -> Receive:
        """`receive`, which ends a body that is larger than it may be, whatever its header says."""
        seen = 0

        async def limited() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise self._too_large()
            return message

        return limited

    async def _measured(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.perf_counter(), "500"

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                self._note(scope, status, time.perf_counter() - started)
            await send(message)

        await self._app(scope, receive, noting)

    def _note(self, scope: Scope, status: str, seconds: float) -> None:
        route = scope.get("route")
        path = "other" if route is None else str(route.path)
        self._server.metrics.http.labels(scope["method"], path, status).observe(seconds)
