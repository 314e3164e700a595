"""`fastvideo router`: several servers of one model behind one address.

A new job goes to the server with the fewest; what is about a job goes to the server that has it, which its id names. So
the router remembers nothing, and may be started again at any time.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from jsonargparse import Namespace
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.records import ID_PATTERN, replica_of
from fastvideo.entrypoints.serve.settings import LOOPBACK_NAMES, RouterSettings, is_loopback
from fastvideo.logger import init_logger

logger = init_logger(__name__)

HOP_BY_HOP = ("connection", "host", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
              "transfer-encoding", "upgrade")  # fmt: skip
"""Headers of one connection (RFC 9110, 7.6.1)."""
CHECK_TIMEOUT = 5.0
AWAY_SECONDS = "5"
Find = Callable[[int], Awaitable[str]]
"""The base URL of the server of that number."""


@dataclass
class Replica:
    """A server, as it was at the last look."""

    url: str
    name: str | None = None
    """Its own, once it said it."""
    ready: bool = False
    load: int = 0
    """Jobs that wait or run."""
    sent: int = field(default=0)
    """New jobs that were sent there since."""

    @property
    def busy(self) -> int:
        """How much it has to do, as far as is known."""
        return self.load + self.sent


class Router:
    """Knows the replicas, and passes requests on."""

    def __init__(self, settings: RouterSettings, find: Find | None = None) -> None:
        """`find` says where a server is now that does not answer where it was; None: it stays where it is."""
        self.settings = settings
        self._find = find
        self.replicas = [Replica(url.rstrip("/")) for url in settings.replicas]
        self.client = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=CHECK_TIMEOUT), trust_env=False,
                                        limits=httpx.Limits(max_connections=None))  # fmt: skip
        self.registry = CollectorRegistry()
        self._up = Gauge("fastvideo_router_up", "1 while a server is ready", ["url"], registry=self.registry)
        self._load = Gauge("fastvideo_router_jobs", "jobs that wait or run", ["url"], registry=self.registry)

    async def check(self, replica: Replica) -> None:
        """Look at a replica."""
        was = replica.ready
        try:
            answer = await self.client.get(f"{replica.url}/ready", timeout=CHECK_TIMEOUT)
            said = answer.json()
            replica.name, replica.ready = said["replica"], answer.status_code == 200
            replica.load, replica.sent = said["waiting"] + said["running"], 0
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            replica.ready = False
            await self._look_for(replica)
        if was != replica.ready:
            logger.info("%s: %s", replica.url, "ready" if replica.ready else "away")
        self._up.labels(replica.url).set(replica.ready)
        self._load.labels(replica.url).set(replica.load)

    async def _look_for(self, replica: Replica) -> None:
        if self._find is None:
            return
        with suppress(Exception):  # it is being started again; the next look will find it
            replica.url = await self._find(self.replicas.index(replica))

    async def keep_checking(self) -> None:
        """Look at all replicas, again and again."""
        while True:
            await asyncio.gather(*map(self.check, self.replicas))
            names = [replica.name for replica in self.replicas if replica.name is not None]
            for name in {name for name in names if names.count(name) > 1}:
                logger.error("several servers call themselves %r: give each another server.replica", name)
            await asyncio.sleep(self.settings.check_seconds)

    def by_load(self, idempotency_key: str | None = None) -> list[Replica]:
        """The replicas that are ready, the best for a new job first.

        A request that is sent again has the same key, and has to come to the same server: the key decides then.

        Raises:
            ApiError: 503; none is ready.
        """
        ready = [replica for replica in self.replicas if replica.ready]
        if not ready:
            raise ApiError(503, "no server is ready", code="not_ready", headers={"Retry-After": AWAY_SECONDS})
        if idempotency_key is None:
            return sorted(ready, key=lambda replica: replica.busy)

        def weight(replica: Replica) -> str:
            return hashlib.sha256(f"{idempotency_key} {replica.url}".encode()).hexdigest()

        return sorted(ready, key=weight)

    def owner(self, job_id: str) -> Replica:
        """The replica that has a job.

        Raises:
            ApiError: 404, there is none of that name; 503, it is away.
        """
        found = [replica for replica in self.replicas if replica.name == replica_of(job_id)]
        if not re.match(ID_PATTERN, job_id) or not found:
            raise ApiError(404, f"{job_id}: there is no such video", code="not_found")
        if not found[0].ready:
            raise ApiError(503, f"{job_id}: its server is away", code="not_ready",
                           headers={"Retry-After": AWAY_SECONDS})  # fmt: skip
        return found[0]

    async def forward(self, request: Request, choices: Sequence[Replica], body: bytes) -> Response:
        """What the first of `choices` that can be reached answers, as it comes."""
        for replica in choices:
            headers = forwarded_headers(request.headers.items(), request.headers.get("host", ""))
            url = f"{replica.url}{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")
            outgoing = self.client.build_request(request.method, url, headers=headers, content=body)
            try:
                answer = await self.client.send(outgoing, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                replica.ready = False  # nothing of the request has arrived there
                continue
            except httpx.HTTPError:
                replica.ready = False
                raise ApiError(503, "the server went away", code="not_ready",
                               headers={"Retry-After": AWAY_SECONDS}) from None  # fmt: skip
            replica.sent += request.method == "POST"
            kept = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
            return StreamingResponse(passed_on(answer), answer.status_code, kept)
        raise ApiError(503, "no server is ready", code="not_ready", headers={"Retry-After": AWAY_SECONDS})

    async def merged_list(self, request: Request) -> Response:
        """The page of all replicas' videos together."""
        headers = forwarded_headers(request.headers.items(), request.headers.get("host", ""))
        urls = [f"{replica.url}/v1/videos?{request.url.query}" for replica in self.by_load()]
        answers = await asyncio.gather(*(self.client.get(url, headers=headers) for url in urls), return_exceptions=True)
        pages = []
        for answer in answers:
            if isinstance(answer, BaseException):
                continue
            if answer.status_code != 200:
                return Response(answer.content, answer.status_code, media_type="application/json")
            pages.append(answer.json())
        limit = int(request.query_params.get("limit", 20))
        # replicas with a common database list the same
        videos = {video["id"]: video for page in pages for video in page["data"]}
        ids = sorted(videos, reverse=request.query_params.get("order", "desc") == "desc")
        more = len(ids) > limit or any(page["has_more"] for page in pages)
        ids = ids[:limit]
        return JSONResponse({
            "object": "list", "data": [videos[one] for one in ids], "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None, "has_more": more,
        })  # fmt: skip


def forwarded_headers(headers: Any, host: str) -> list[tuple[str, str]]:
    """The headers of a request for a replica; of the router's own pages none says where they come from."""
    return [
        (name, value)
        for name, value in headers
        if name not in (*HOP_BY_HOP, "content-length") and not (name == "origin" and urlsplit(value).netloc == host)
    ]


async def passed_on(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The bytes of an answer as they come, compressed as they are."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.HTTPError:
        return
    finally:
        await answer.aclose()


def create_router(settings: RouterSettings, find: Find | None = None) -> Starlette:
    """The application; `find` as of `Router`."""
    router = Router(settings, find)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        checking = asyncio.create_task(router.keep_checking())
        yield
        checking.cancel()
        with suppress(asyncio.CancelledError):
            await checking
        await router.client.aclose()

    async def answer(request: Request) -> Response:
        path = request.url.path
        check_host(settings, request.headers.get("host", ""))
        if path == "/health":
            return JSONResponse({"status": "ok", "since": started})
        if path == "/ready":
            ready = [replica.name for replica in router.replicas if replica.ready]
            return JSONResponse({"status": "ready" if ready else "loading", "replicas": ready}, 200 if ready else 503)
        if path == "/metrics":
            return Response(generate_latest(router.registry), media_type="text/plain; version=0.0.4")
        if path == "/v1/videos" and request.method == "GET":
            return await router.merged_list(request)
        body = await limited_body(request, int(settings.max_upload_mb * 2**20))
        job = re.match(r"^/v1/videos/((?:video|image)_[^/]*)", path)
        key = request.headers.get("idempotency-key")
        return await router.forward(request, [router.owner(job[1])] if job else router.by_load(key), body)

    async def guarded(request: Request) -> Response:
        try:
            return await answer(request)
        except ApiError as error:
            return error.response()
        except ClientDisconnect:
            return Response(status_code=400)

    async def socket(websocket: WebSocket) -> None:
        await relay(router, websocket)

    methods = ["GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD"]
    routes = [WebSocketRoute("/v1/videos/{job_id}/events", socket), Route("/{path:path}", guarded, methods=methods)]
    return Starlette(routes=routes, lifespan=lifespan)


async def limited_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        ApiError: 413; it is too large.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise ApiError(413, f"the body is larger than {most >> 20} MB", code="too_large")
    return bytes(body)


def check_host(settings: RouterSettings, host: str) -> None:
    """Raise a 403 when a router of this machine alone is called by another name (as of DNS rebinding)."""
    name = urlsplit(f"//{host}").hostname
    if is_loopback(settings.host) and name not in (*LOOPBACK_NAMES, settings.host):
        raise ApiError(403, f"Host: {name!r} is not this server", param="Host", code="wrong_host")


async def relay(router: Router, websocket: WebSocket) -> None:
    """Pass the events of a job on."""
    try:
        check_host(router.settings, websocket.headers.get("host", ""))
        replica = router.owner(websocket.path_params["job_id"])
    except ApiError as error:
        await websocket.close(1008, error.message)
        return
    skipped = ("sec-websocket", "connection", "upgrade", "host")
    given = [(name, value) for name, value in websocket.headers.items() if not name.startswith(skipped)]
    headers = forwarded_headers(given, websocket.headers.get("host", ""))
    url = f"{replica.url.replace('http', 'ws', 1)}{websocket.url.path}"
    try:
        async with connect(url, additional_headers=headers, proxy=None) as inner:
            await websocket.accept()
            async for message in inner:
                await websocket.send_text(str(message))
            await websocket.close()
    except (InvalidStatus, OSError):
        await websocket.close(1008, "the server refuses")
    except (ConnectionClosed, WebSocketDisconnect, RuntimeError):
        return


def run(options: Namespace) -> int:
    """Route until the process is told to stop."""
    import uvicorn

    from fastvideo.entrypoints.cli.generate import given
    from fastvideo.entrypoints.serve.run import listen

    settings = RouterSettings(**{"replicas": [], **given(options.router)})
    settings.check()
    listening = listen(settings.host, settings.port)
    host, port = listening.getsockname()[:2]
    logger.info("routing on http://%s:%d to %s", host, port, ", ".join(settings.replicas))
    app = create_router(settings)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10)).run(
        sockets=[listening]
    )
    return 0
