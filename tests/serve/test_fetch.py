"""URLs that clients give: what is asked, what never is, and for how long."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from fastvideo.entrypoints.serve import fetch as fetching
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.fetch import fetch, is_public
from tests.serve.stand_in import FromImage, StandIn, running
from tests.serve.test_references import ask, by_link, picture, refused


class Site(http.server.BaseHTTPRequestHandler):
    """A site on this machine, which tests take for a public one."""

    asked: list[str] = []  # noqa: RUF012 - of the tests

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers['Host']} {self.path}")
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to?"))
            self.end_headers()
        elif self.path == "/slow":
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"y" * 1000:
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)
        else:
            data = {"/a.png": picture(), "/large": bytes(3 << 20)}.get(self.path)
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture(scope="module")
def served() -> Iterator[int]:
    """The port of a site."""
    made = http.server.ThreadingHTTPServer(("127.0.0.9", 0), Site)
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made.server_port
    made.shutdown()
    made.server_close()


@pytest.fixture
def site(served: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a site that counts as public; nothing else of this machine does."""
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *more: Any, **options: Any) -> Any:
        names = {"images.example": ["127.0.0.9"], "inside.example": ["10.1.2.3"],
                 "half.example": ["127.0.0.9", "10.1.2.3"]}  # fmt: skip
        if host not in names:
            return real(host, port, *more, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in names[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.9" or is_public(address))
    Site.asked.clear()
    return f"images.example:{served}"


class TestUrls:
    def get(self, url: str, seconds: float = 5) -> bytes:
        return fetch(url, "input_reference", most_bytes=1 << 20, seconds=seconds)

    def test_what_is_there(self, site: str) -> None:
        assert self.get(f"http://{site}/a.png") == picture()
        assert self.get(f"http://{site}/to?/a.png") == picture()
        assert Site.asked[0] == f"{site} /a.png", "the site is asked by its name"

    @pytest.mark.parametrize(
        "path",
        ["/to?http://inside.example/", "/to?http://127.0.0.1/", "/to?http://[::1]/", "/to?file:///etc/passwd",
         "/to?http://169.254.169.254/latest", "/to?/to?/to?/to?/to?/a.png", "/nothing", "/large"],
    )  # fmt: skip
    def test_what_it_may_lead_to(self, site: str, path: str) -> None:
        with pytest.raises(ApiError) as error:
            self.get(f"http://{site}{path}")
        assert (error.value.status, error.value.param) == (400, "input_reference")

    @pytest.mark.parametrize(
        "url",
        ["http://inside.example/", "http://half.example/", "http://localhost/", "http://127.1/", "http://2130706433/",
         "http://0x7f000001/", "http://[::ffff:127.0.0.1]/", "http://0.0.0.0/", "ftp://images.example/",
         "http://user:pass@images.example/", "http://", "http://[", "http://images.example:99999/", "gopher://x",
         "http://images.example/\r\nX: y", "http://a" + "a" * 70 + ".example/"],
    )  # fmt: skip
    def test_what_is_never_asked(self, site: str, url: str) -> None:
        with pytest.raises(ApiError) as error:
            self.get(url)
        assert error.value.status == 400
        assert Site.asked == []

    def test_one_that_is_slow(self, site: str) -> None:
        started = time.monotonic()
        with pytest.raises(ApiError, match=r"more than 0.3 s"):
            self.get(f"http://{site}/slow", seconds=0.3)
        assert time.monotonic() - started < 3

    def test_a_name_that_changes_is_asked_once(self, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
        port, answers = int(site.split(":")[1]), [["127.0.0.9"], ["127.0.0.1"]]

        def changing(host: str, port: int, *more: Any, **options: Any) -> Any:
            assert host == "images.example", "what is connected to is an address"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

        connected: list[Any] = []
        monkeypatch.setattr(socket, "getaddrinfo", changing)
        monkeypatch.setattr(
            "httpcore._backends.sync.socket.create_connection",
            lambda address, *more, **options: connected.append(address) or _connect(address),
        )
        assert self.get(f"http://{site}/a.png") == picture()
        assert connected == [("127.0.0.9", port)]

    def test_only_where_the_operator_allows_it(self, site: str, tmp_path: Path) -> None:
        reference = {"image_url": f"http://{site}/a.png"}
        with running(tmp_path / "closed", model=StandIn(FromImage)) as made:
            assert "fetches no URLs" in refused(ask(made, input_reference=reference), "input_reference")
        assert Site.asked == []
        with (
            running(tmp_path, model=StandIn(FromImage), reference_urls=True) as made,
            openai.OpenAI(base_url=f"{made.url}/v1", api_key="none", max_retries=0) as client,
        ):
            video = by_link(client, input_reference=reference)
            assert client.videos.poll(video.id, poll_interval_ms=20).status == "completed"
            assert made.model.shown[0]["image"].shape == (32, 64, 3)


def _connect(address: tuple[str, int]) -> socket.socket:
    made = socket.socket()
    made.connect(address)
    return made


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("2606:4700:4700::1111", True), ("10.0.0.1", False), ("172.16.0.1", False),
     ("192.168.1.1", False), ("127.0.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False),
     ("0.0.0.0", False), ("255.255.255.255", False), ("224.0.0.1", False), ("::1", False), ("fe80::1%eth0", False),
     ("fd00::1", False), ("::ffff:8.8.8.8", False), ("64:ff9b::a00:1", False), ("2002:a00:1::", False),
     ("2001:0:53aa:64c::", False), ("ff02::1", False), ("::", False)],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public
