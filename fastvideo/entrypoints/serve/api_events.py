"""`/v1/videos/{id}/events`: what happens to a job, as server-sent events or over a WebSocket."""

from typing import Annotated

from fastapi import APIRouter, Depends, WebSocket
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocketDisconnect

from fastvideo.entrypoints.serve.auth import Access
from fastvideo.entrypoints.serve.context import Server
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.keys import Caller
from fastvideo.entrypoints.serve.waiting import events_of, server_sent

REFUSED = 1008
"""The code of a WebSocket that is closed for policy (RFC 6455)."""


def event_routes(server: Server, access: Access) -> APIRouter:
    """The routes of one server."""
    router = APIRouter(prefix="/v1/videos", tags=["events"])

    @router.get("/{video_id}/events", response_class=StreamingResponse,
                responses={200: {"content": {"text/event-stream": {}}}})  # fmt: skip
    async def events(video_id: str, caller: Annotated[Caller, Depends(access.needs("read"))]) -> StreamingResponse:
        """Server-sent events from now to the end of the job: stage, step, total, seconds left, previews."""
        job = await run_in_threadpool(server.job, video_id, caller)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(server_sent(server, job.id), media_type="text/event-stream", headers=headers)

    @router.websocket("/{video_id}/events")
    async def socket(websocket: WebSocket, video_id: str) -> None:
        """The same events, each a JSON text."""
        try:
            caller = await run_in_threadpool(access.caller, websocket.headers.get("authorization"))
            caller.require("read")
            job = await run_in_threadpool(server.job, video_id, caller)
        except ApiError as error:
            await websocket.close(REFUSED, error.message)
            return
        await websocket.accept()
        try:
            async for event in events_of(server, job.id):
                if event is not None:
                    await websocket.send_json(event)
            await websocket.close()
        except (WebSocketDisconnect, RuntimeError):
            return

    return router
