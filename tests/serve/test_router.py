"""The router: who gets a job, where a job is found again, and what happens when a server goes."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
import websockets.sync.client

from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.serve.records import replica_of
from fastvideo.entrypoints.serve.router import create_router
from fastvideo.entrypoints.serve.settings import RouterSettings
from tests.serve.stand_in import PATIENCE, Running, running, wait_until
from tests.serve.test_jobs import post, state_of

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@contextmanager
def routing(urls: list[str], ready: int) -> Iterator[str]:
    """The URL of a router that has seen `ready` servers."""
    settings = RouterSettings(replicas=urls, check_seconds=0.05)
    settings.check()
    web = uvicorn.Server(uvicorn.Config(create_router(settings), port=0, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=web.run)
    thread.start()
    try:
        wait_until(lambda: web.started)
        url = f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
        wait_until(lambda: len(httpx.get(f"{url}/ready").json()["replicas"]) == ready)
        yield url
    finally:
        web.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[list[Running], httpx.Client]]:
    """Two servers, and a client of the router before them."""
    with ExitStack() as stack:
        servers = [stack.enter_context(running(tmp_path / name, replica=name)) for name in ("a", "b")]
        url = stack.enter_context(routing([made.url for made in servers], ready=2))
        yield servers, stack.enter_context(httpx.Client(base_url=url, timeout=60))


def test_the_least_loaded_gets_it_and_each_job_is_found_again(two: tuple[list[Running], httpx.Client]) -> None:
    servers, web = two
    for made in servers:
        made.model.go.clear()
    ids = [post(web, f"number {n}").json()["id"] for n in range(6)]
    names = [replica_of(job_id) for job_id in ids]
    assert (names.count("a"), names.count("b")) == (3, 3)
    assert all(web.get(f"/v1/videos/{job_id}").json()["id"] == job_id for job_id in ids)
    for made in servers:
        made.model.go.set()
    wait_until(lambda: all(state_of(web, job_id) == "completed" for job_id in ids))
    assert web.get(f"/v1/videos/{ids[0]}/content").content[4:8] == b"ftyp"
    assert web.get("/v1/models").json()["data"][0]["id"] == "stand-in"
    with openai.OpenAI(base_url=f"{web.base_url}/v1", api_key="none", max_retries=0) as client:
        assert [video.id for video in client.videos.list(limit=2)] == sorted(ids, reverse=True)
        assert [video.id for video in client.videos.list(limit=4, order="asc")] == sorted(ids)
        remix = client.videos.remix(ids[1], prompt="again")
        assert replica_of(remix.id) == replica_of(ids[1])
        assert client.videos.poll(remix.id, poll_interval_ms=20).status == "completed"
        assert client.videos.delete(ids[0]).deleted


def test_events_come_through(two: tuple[list[Running], httpx.Client]) -> None:
    servers, web = two
    for made in servers:
        made.model.go.clear()
    job_id = post(web).json()["id"]
    url = f"{str(web.base_url).replace('http', 'ws')}/v1/videos/{job_id}/events"
    with websockets.sync.client.connect(url) as over, web.stream("GET", f"/v1/videos/{job_id}/events") as sent:
        first = json.loads(over.recv())
        for made in servers:
            made.model.go.set()
        assert first["id"] == job_id
        assert json.loads(list(over)[-1])["type"] == "video.completed"
        assert [line for line in sent.iter_lines() if line][-2] == "event: video.completed"


def test_the_same_request_twice_is_one_job(two: tuple[list[Running], httpx.Client]) -> None:
    _, web = two
    ids = {post(web, headers={"Idempotency-Key": "abc"}).json()["id"] for _ in range(4)}
    assert len(ids) == 1


def test_errors_come_through(two: tuple[list[Running], httpx.Client]) -> None:
    _, web = two
    assert post(web, size="33x33").json()["error"]["param"] == "size"
    assert web.get("/v1/videos?limit=0").status_code == 400
    for job_id in ("video_1", f"video_{'0' * 35}_nobody"):
        assert web.get(f"/v1/videos/{job_id}").json()["error"]["code"] == "not_found"
    assert web.get("/v1/videos", headers={"Host": "evil.example"}).status_code == 403
    refused = web.post("/v1/videos", data={"prompt": "x"}, headers={"Origin": "https://evil.example"})
    assert refused.json()["error"]["code"] == "wrong_origin"
    assert post(web, headers={"Origin": str(web.base_url).rstrip("/")}).status_code == 200
    assert web.post("/v1/videos", content=b" " * (21 << 20)).status_code == 413
    assert 'fastvideo_router_up{url="' in web.get("/metrics").text


def test_a_server_that_is_away(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with ExitStack() as outer:
        kept = outer.enter_context(running(tmp_path / "a", replica="a"))
        with ExitStack() as inner:
            gone = inner.enter_context(running(tmp_path / "b", replica="b"))
            url = outer.enter_context(routing([nobody, kept.url, gone.url], ready=2))
            web = outer.enter_context(httpx.Client(base_url=url, timeout=60))
            lost = post(httpx.Client(base_url=gone.url)).json()["id"]
            assert state_of(web, lost) in ("queued", "in_progress", "completed")
        # at once, before the router has looked again
        made = post(web)
        assert (made.status_code, replica_of(made.json()["id"])) == (200, "a")
        away = web.get(f"/v1/videos/{lost}")
        assert (away.status_code, away.headers["Retry-After"]) == (503, "5")
        assert len(web.get("/v1/videos").json()["data"]) == 1
        wait_until(lambda: web.get("/ready").json()["replicas"] == ["a"])
    with routing([nobody], ready=0) as url:
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.post(f"{url}/v1/videos", json={"prompt": "x"}).json()["error"]["code"] == "not_ready"
        assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "replicas=[]: at least one URL of a server"),
        (["--router.replicas+", "10.0.0.1:8000"], "must be the base URL of a server"),
        (["--router.replicas", "[http://a:1, http://a:1]"], "one URL stands there twice"),
    ],
)
def test_settings(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["router", *flags]) == 1
    assert said in capsys.readouterr().err
