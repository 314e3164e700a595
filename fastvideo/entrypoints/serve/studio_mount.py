"""Puts the studio at `/`, once the model is loaded whose limits it shows."""

import asyncio
import importlib.util
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from fastvideo.entrypoints.serve.context import Server
from fastvideo.entrypoints.serve.protocols import Generator
from fastvideo.logger import init_logger

logger = init_logger(__name__)

WAIT = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width"><title>FastVideo</title>
<body style="font-family: system-ui; color-scheme: light dark; text-align: center; margin-top: 20vh">
<p role="status">The model is being loaded. This page will show it.</p></body></html>"""


def add_studio(app: FastAPI, server: Server) -> Callable[[], AbstractAsyncContextManager[None]] | None:
    """Have `app` show the page for people, if the operator wants it.

    Returns:
        What has to be open while `app` runs; None when there is no page.

    Raises:
        ImportError: the operator wants it, and gradio is not installed.
    """
    there, wanted = importlib.util.find_spec("gradio") is not None, server.settings.studio
    if wanted and not there:
        raise ImportError("studio=True: gradio is needed; pip install 'fastvideo[studio]', or leave studio out")
    if wanted is False or not there:
        return None

    # what is not there stays an error of the API, and is no page
    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def nothing(request: Request) -> None:
        raise HTTPException(404)

    async def wait(request: Request) -> Response:
        return HTMLResponse(WAIT, 503, {"Retry-After": "2"})

    waiting = Route("/", wait)
    app.router.routes.append(waiting)

    @asynccontextmanager
    async def lives() -> AsyncIterator[None]:
        loop, ending = asyncio.get_running_loop(), asyncio.Event()
        living: list[asyncio.Task[None]] = []

        async def live(page: FastAPI) -> None:
            async with page.router.lifespan_context(page):
                app.router.routes.remove(waiting)
                app.router.routes.append(Mount("/", page))
                await ending.wait()

        def make(generator: Generator) -> None:
            try:
                from fastvideo.entrypoints.serve.studio_page import studio_app

                page = studio_app(server, generator)
                loop.call_soon_threadsafe(lambda: living.append(loop.create_task(live(page))))
            except Exception as error:  # the API goes on without a page
                logger.error("the studio cannot be shown: %s: %s", type(error).__name__, error)

        def loaded(generator: Generator) -> None:
            # beside the model: importing gradio takes seconds
            threading.Thread(target=make, args=(generator,), name="studio", daemon=True).start()

        server.on_loaded = loaded
        yield
        ending.set()
        await asyncio.gather(*living, return_exceptions=True)

    return lives
