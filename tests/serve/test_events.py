"""Watching: server-sent events, the WebSocket, waiting for the file, webhooks, metrics."""

import base64
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import websockets.sync.client
from PIL import Image

from fastvideo.entrypoints.media import read_metadata
from fastvideo.entrypoints.serve.webhooks import RETRY_SECONDS
from tests.serve.stand_in import Running, running, wait_until
from tests.serve.test_jobs import Held, post, state_of

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


def sse(web: httpx.Client, job_id: str) -> Iterator[dict[str, Any]]:
    """The events of a job to their end."""
    with web.stream("GET", f"/v1/videos/{job_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                assert event["type"] == name
                yield event


def check_story(events: list[dict[str, Any]], job_id: str) -> None:
    """The events of a job that was watched from before it began."""
    assert {event["id"] for event in events} == {job_id}
    assert events[0]["type"] in ("video.queued", "video.in_progress")
    assert events[-1] | {"progress": 100} == {
        "type": "video.completed", "id": job_id, "status": "completed", "progress": 100,
    }  # fmt: skip
    steps = [(event["stage"], event["step"], event["total"]) for event in events if event["type"] == "video.progress"]
    assert steps[-6:] == [*(("denoising", step, 4) for step in range(1, 5)), ("decoding", 0, 1), ("decoding", 1, 1)]
    percents = [event["progress"] for event in events]
    assert percents == sorted(percents)
    left = [event["seconds_left"] for event in events if event["type"] == "video.progress" and event["step"]]
    assert all(isinstance(seconds, float) for seconds in left)
    (preview,) = [event["preview"] for event in events if event.get("step") == 2]
    kind, data = preview.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (32, 32)


def test_server_sent_events(tmp_path: Path) -> None:
    with running(tmp_path, preview_every=2) as made, httpx.Client(base_url=made.url) as web:
        held = Held(made, web)
        waits = post(web).json()["id"]
        events = []
        for event in sse(web, waits):
            events.append(event)
            if event["type"] == "video.queued":
                assert event["position"] == 0
                made.model.go.set()
        check_story(events, waits)
        assert [event["type"] for event in sse(web, held.first)] == ["video.completed"], "one that has ended"


def test_websocket(tmp_path: Path) -> None:
    with running(tmp_path, preview_every=2) as made, httpx.Client(base_url=made.url) as web:
        Held(made, web)
        waits = post(web).json()["id"]
        url = f"{made.url.replace('http', 'ws')}/v1/videos/{waits}/events"
        events = []
        with websockets.sync.client.connect(url) as socket:
            events.append(json.loads(socket.recv()))
            made.model.go.set()
            events += [json.loads(message) for message in socket]
        check_story(events, waits)


def test_of_a_job_that_is_not_there(web: httpx.Client, served: Running) -> None:
    assert web.get("/v1/videos/video_1/events").status_code == 404
    url = f"{served.url.replace('http', 'ws')}/v1/videos/video_1/events"
    with pytest.raises(websockets.exceptions.InvalidStatus), websockets.sync.client.connect(url):
        pass


def test_a_cancelled_job_says_so(tmp_path: Path) -> None:
    with running(tmp_path) as made, httpx.Client(base_url=made.url) as web:
        held = Held(made, web)
        threading.Timer(0.1, lambda: httpx.post(f"{made.url}/v1/videos/{held.first}/cancel")).start()
        last = list(sse(web, held.first))[-1]
        assert (last["type"], last["error"]["code"]) == ("video.failed", "cancelled")


def test_sync_gives_the_file(web: httpx.Client, tmp_path: Path) -> None:
    answer = web.post("/v1/videos/sync", json={"prompt": "kite", "seed": 77})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    (tmp_path / "clip.mp4").write_bytes(answer.content)
    assert read_metadata(tmp_path / "clip.mp4")["seed"] == 77
    assert state_of(web, answer.headers["X-Video-Id"]) == "completed"


def test_sync_says_what_went_wrong(web: httpx.Client) -> None:
    answer = web.post("/v1/videos/sync", json={"prompt": "fail"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "not_finite")
    assert web.post("/v1/videos/sync", json={"prompt": "kite", "size": "33x33"}).status_code == 400


def test_a_client_that_goes_away_cancels_what_it_waits_for(tmp_path: Path) -> None:
    with running(tmp_path) as made, httpx.Client(base_url=made.url) as web:
        made.model.go.clear()
        with pytest.raises(httpx.ReadTimeout):
            web.post("/v1/videos/sync", json={"prompt": "kite"}, timeout=0.5)
        (job,) = web.get("/v1/videos").json()["data"]
        wait_until(lambda: state_of(web, job["id"]) == "failed")
        assert web.get(f"/v1/videos/{job['id']}").json()["error"]["code"] == "cancelled"


class Receiver(http.server.BaseHTTPRequestHandler):
    """Keeps what it is sent; refuses the first call."""

    calls: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(503 if len(self.calls) == 1 else 204)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Says nothing."""


def test_webhooks_are_signed_and_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvideo.entrypoints.serve.webhooks.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("fastvideo.entrypoints.serve.webhooks.RETRY_SECONDS", (0, *RETRY_SECONDS))
    Receiver.calls = []
    receiver = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{receiver.server_port}/hook"
    try:
        with (
            running(tmp_path, webhook_url=url, webhook_secret=SECRET) as made,
            httpx.Client(base_url=made.url) as web,
        ):
            done, failed = post(web).json()["id"], post(web, "fail").json()["id"]
            wait_until(lambda: len(Receiver.calls) >= 3 and not made.server.store.due_deliveries())
    finally:
        receiver.shutdown()
        receiver.server_close()
    client = openai.OpenAI(api_key="none")
    told = {}
    for headers, body in Receiver.calls:
        client.webhooks.verify_signature(body, headers, secret=SECRET)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body + b" ", headers, secret=SECRET)
        event = json.loads(body)
        told[event["data"]["id"]] = (event["type"], event["object"], headers["webhook-id"] == event["id"])
    assert told == {done: ("video.completed", "event", True), failed: ("video.failed", "event", True)}


def test_metrics_and_health(served: Running, web: httpx.Client) -> None:
    done, failed = post(web).json()["id"], post(web, "fail").json()["id"]
    wait_until(lambda: state_of(web, failed) == "failed" and state_of(web, done) == "completed")
    web.get("/nowhere")
    lines = web.get("/metrics").text.splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    assert values["fastvideo_queue_length"] == 0
    assert values["fastvideo_ready"] == 1
    assert values['fastvideo_jobs_total{state="completed"}'] >= 1
    assert values['fastvideo_failures_total{code="not_finite"}'] >= 1
    assert values["fastvideo_steps_total"] >= 4
    assert values["fastvideo_steps_per_second"] == pytest.approx(40)
    assert values['fastvideo_stage_seconds_count{stage="denoising"}'] >= 1
    assert values["fastvideo_queue_wait_seconds_count"] >= 2
    assert values["fastvideo_peak_memory_bytes"] == 2**20
    assert values["process_resident_memory_bytes"] > 1e6
    assert values['fastvideo_http_seconds_count{method="GET",route="/v1/videos/{video_id}",status="200"}'] >= 1
    assert values['fastvideo_http_seconds_count{method="GET",route="other",status="404"}'] >= 1
    assert web.get("/health").json() == {"status": "ok"}
    ready = web.get("/ready")
    assert (ready.status_code, ready.json()["status"], ready.json()["replica"]) == (200, "ready", "main")
