"""Who may do what, and what no client can do."""

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa
import websockets.sync.client

from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.serve.database import open_engine
from fastvideo.entrypoints.serve.keys import add_key, revoke_key
from fastvideo.entrypoints.serve.records import api_keys
from fastvideo.entrypoints.serve.store import Store
from fastvideo.logger import hide_prompts
from tests.serve.stand_in import Running, running, wait_until
from tests.serve.test_jobs import post, state_of


def bearer(key: str) -> dict[str, str]:
    """The header of a key."""
    return {"Authorization": f"Bearer {key}"}


class TestKeys:
    def test_scopes_and_owners(self, tmp_path: Path) -> None:
        with running(tmp_path, api_keys=True) as made, httpx.Client(base_url=made.url) as web:
            store = made.server.store
            keys = {name: add_key(store, name, scopes, max_jobs)[1] for name, scopes, max_jobs in (
                ("writer", ("read", "write"), 3), ("reader", ("read",), None), ("admin", ("admin",), None),
                ("urgent", ("read", "write", "priority"), None), ("monitor", ("metrics",), None),
            )}  # fmt: skip
            headers = {name: bearer(key) for name, key in keys.items()}

            def status(name: str, path: str, **fields: Any) -> int:
                method = "POST" if fields else "GET"
                return web.request(method, path, headers=headers[name], **fields).status_code

            def jobs_of(name: str) -> list[dict[str, Any]]:
                jobs: list[dict[str, Any]] = web.get("/v1/videos", headers=headers[name]).json()["data"]
                return jobs

            assert web.get("/v1/videos").status_code == 401
            assert web.get("/v1/videos", headers=bearer("fv-wrong")).json()["error"]["code"] == "invalid_api_key"
            assert web.get("/v1/videos", headers={"Authorization": "Basic eDp5"}).status_code == 401
            assert web.get("/health").status_code == web.get("/ready").status_code == 200
            body = {"prompt": "kite"}
            assert status("reader", "/v1/videos", json=body) == 403
            assert status("writer", "/v1/videos", json=body | {"priority": 1}) == 403
            assert status("urgent", "/v1/videos", json=body | {"priority": 1}) == 200
            assert status("writer", "/v1/videos", json=body | {"priority": -1}) == 200
            assert status("writer", "/metrics") == 403
            assert status("monitor", "/metrics") == status("admin", "/metrics") == 200
            assert status("monitor", "/v1/videos") == 403

            mine = post(web, headers=headers["writer"]).json()["id"]
            for path in (f"/v1/videos/{mine}", f"/v1/videos/{mine}/content", f"/v1/videos/{mine}/events"):
                assert status("reader", path) == 404, "the jobs of others are not there"
            assert status("urgent", f"/v1/videos/{mine}/cancel", json={}) == 404
            assert jobs_of("reader") == []
            assert len(jobs_of("admin")) == 3
            assert status("admin", f"/v1/videos/{mine}") == 200
            url = f"{made.url.replace('http', 'ws')}/v1/videos/{mine}/events"
            with pytest.raises(websockets.exceptions.InvalidStatus), websockets.sync.client.connect(url):
                pass
            with websockets.sync.client.connect(url, additional_headers=headers["writer"]) as socket:
                assert json.loads(socket.recv())["id"] == mine

            with openai.OpenAI(base_url=f"{made.url}/v1", api_key=keys["writer"], max_retries=0) as client:
                assert client.models.list().data
                wait_until(lambda: all(job["status"] == "completed" for job in jobs_of("writer")))
                made.model.go.clear()
                for _ in range(3):
                    client.post("/videos", body=body, cast_to=object)
                with pytest.raises(openai.RateLimitError, match="which is your limit"):
                    client.post("/videos", body=body, cast_to=object)
                made.model.go.set()

    def test_a_key_is_kept_as_a_hash_and_can_be_revoked(self, tmp_path: Path) -> None:
        store = Store(open_engine(f"sqlite:///{tmp_path / 'jobs.sqlite'}"), "main")
        key_id, key = add_key(store, "me", ("read",))
        with store.engine.connect() as connection:
            row = connection.execute(sa.select(api_keys)).mappings().one()
        assert key not in json.dumps(dict(row))
        assert all(key.encode() not in file.read_bytes() for file in tmp_path.iterdir())
        assert len(key) > 40
        with running(tmp_path, api_keys=True) as made, httpx.Client(base_url=made.url, headers=bearer(key)) as web:
            assert web.get("/v1/models").status_code == 200
            assert revoke_key(store, key_id)
            assert web.get("/v1/models").status_code == 401

    def test_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = ["--data-dir", str(tmp_path)]
        assert main(["keys", "add", "a laptop", "--scopes", "read,metrics", *folder]) == 0
        said = capsys.readouterr().out
        key_id, key = said.split(":")[0], said.splitlines()[-1]
        with running(tmp_path, api_keys=True) as made:
            assert httpx.get(f"{made.url}/metrics", headers=bearer(key)).status_code == 200
        assert main(["keys", "list", *folder]) == 0
        assert capsys.readouterr().out == f"{key_id}  valid  metrics,read  a laptop\n"
        assert main(["keys", "revoke", key_id, *folder]) == 0
        assert main(["keys", "list", *folder]) == 0
        assert "revoked" in capsys.readouterr().out
        for wrong, said in (
            (["add", "x", "--scopes", "everything"], "scopes='everything': must be some of read, write"),
            (["revoke", "key_1"], "name='key_1': no valid key has this id"),
            (["change", "x"], "action='change': must be one of add, list, revoke"),
            (["add"], "name=None: say which key to add"),
        ):
            assert main(["keys", *wrong, *folder]) == 1
            assert said in capsys.readouterr().err


class TestLoopback:
    """Without keys the server is for programs of this machine, which a page in a browser is not."""

    def test_a_name_that_lies(self, web: httpx.Client) -> None:
        refused = web.get("/v1/videos", headers={"Host": "evil.example"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_host")

    @pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:1", "null"])
    def test_pages_of_other_sites(self, web: httpx.Client, origin: str) -> None:
        refused = web.post("/v1/videos", data={"prompt": "kite"}, headers={"Origin": origin})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_origin")
        assert "access-control-allow-origin" not in refused.headers

    def test_its_own_pages(self, web: httpx.Client, served: Running) -> None:
        assert web.get("/v1/models", headers={"Origin": served.url}).status_code == 200

    def test_sites_that_the_operator_names(self, tmp_path: Path) -> None:
        origin = "https://app.example"
        with running(tmp_path, cors_origins=[origin]) as made:
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = httpx.options(f"{made.url}/v1/videos", headers=asked)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
            assert httpx.get(f"{made.url}/v1/models", headers={"Origin": origin}).status_code == 200
            other = httpx.options(f"{made.url}/v1/videos", headers=asked | {"Origin": "https://evil.example"})
            assert "access-control-allow-origin" not in other.headers

    def test_without_keys_no_other_machine_can_reach_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["serve", "--server.host", "0.0.0.0", "--server.api_keys", "false"]) == 1
        assert "api_keys=False: host='0.0.0.0' can be reached from other machines" in capsys.readouterr().err


class TestBodies:
    def test_too_large_whatever_the_header_says(self, tmp_path: Path) -> None:
        with running(tmp_path, max_upload_mb=0.01) as made, httpx.Client(base_url=made.url) as web:
            body = json.dumps({"prompt": "x" * 20_000}).encode()
            kind = {"content-type": "application/json"}
            said = web.post("/v1/videos", content=body, headers=kind)
            chunked = web.post("/v1/videos", content=iter([body[:9000], body[9000:]]), headers=kind)
            upload = web.post("/v1/videos", data={"prompt": "x"}, files={"input_reference": ("a.png", body)})
            for answer in (said, chunked, upload):
                assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")

    @pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/xml", ""])
    def test_kinds_that_are_no_request(self, web: httpx.Client, kind: str) -> None:
        answer = web.post("/v1/videos", content=b"prompt=kite", headers={"content-type": kind})
        assert answer.status_code == 400, answer.text

    def test_a_file_name_goes_nowhere(self, web: httpx.Client, served: Running, tmp_path: Path) -> None:
        name = f"../../{tmp_path.name}/evil.png"
        answer = web.post("/v1/videos", data={"prompt": "x"}, files={"input_reference": (name, b"x")})
        assert answer.status_code == 400
        other = web.post("/v1/videos", data={"prompt": "x"}, files={"output_path": ("/tmp/x", b"x")})
        assert other.json()["error"]["param"] == "output_path"
        assert list(tmp_path.iterdir()) == []


ESCAPES = (
    "/v1/videos/../../etc/passwd",
    "/v1/videos/%2e%2e%2fjobs.sqlite/content",
    "/v1/videos/video_1%00/content",
    "/v1/videos/\ud7ff/content",
    "/etc/passwd",
)


@pytest.mark.parametrize("path", ESCAPES)
def test_paths_lead_to_no_file(web: httpx.Client, path: str) -> None:
    answer = web.get(path)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


def test_errors_have_the_shape_of_openai(web: httpx.Client) -> None:
    for answer in (web.get("/v1/nothing"), web.put("/v1/videos"), web.get("/v1/videos?limit=0")):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.status_code in (404, 405, 400)
    assert web.get("/v1/videos?limit=0").json()["error"]["param"] == "limit"
    assert web.get("/v1/videos?order=up").json()["error"]["param"] == "order"


def test_logs_have_no_prompt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    package = logging.getLogger("fastvideo")
    package.addHandler(caplog.handler)
    try:
        hide_prompts()
        with running(tmp_path) as made, httpx.Client(base_url=made.url) as web:
            for prompt in ("a secret wish", "a secret fail"):
                job_id = post(web, prompt, negative_prompt="secret too").json()["id"]
                wait_until(lambda job_id=job_id: state_of(web, job_id) in ("completed", "failed"))
            encoder = logging.getLogger("fastvideo.models.encoders.t5")
            encoder.warning("prompt of %d tokens: at most %d are used; cut: %r", 600, 512, "a secret")
        assert "begins" in caplog.text
        assert "was cut" in caplog.text
        assert "secret" not in caplog.text
    finally:
        package.removeHandler(caplog.handler)
        for handler in package.handlers:
            handler.filters.clear()
