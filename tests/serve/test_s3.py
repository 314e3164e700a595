"""Finished files in an object store: a stand-in of S3 on this machine, through s3fs."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import httpx
import pytest

from fastvideo.entrypoints.serve.ranges import asked_part
from fastvideo.entrypoints.serve.retention import Sweeper
from tests.serve.stand_in import running, wait_until
from tests.serve.test_jobs import post, state_of


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a folder in a bucket."""
    pytest.importorskip("s3fs")
    server_of = pytest.importorskip("moto.server")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = fsspec.config.conf.get("s3")
    fsspec.config.conf["s3"] = {
        "endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s",
        "client_kwargs": {"region_name": "us-east-1"},
    }  # fmt: skip
    try:
        boto3 = pytest.importorskip("boto3")
        settings = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
        boto3.client("s3", aws_access_key_id="k", aws_secret_access_key="s", **settings).create_bucket(Bucket="videos")
        yield "s3://videos/finished"
    finally:
        fsspec.config.conf.pop("s3")
        if before is not None:
            fsspec.config.conf["s3"] = before
        server.stop()


def test_files_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    with running(tmp_path, files_url=bucket) as made, httpx.Client(base_url=made.url, timeout=60) as web:
        ids = [post(web, f"kite {n}", seed=n).json()["id"] for n in range(3)]
        wait_until(lambda: all(state_of(web, job_id) == "completed" for job_id in ids))
        url = f"/v1/videos/{ids[0]}/content"
        whole = web.get(url)
        assert (whole.status_code, whole.headers["accept-ranges"]) == (200, "bytes")
        assert whole.content[4:8] == b"ftyp"
        size = len(whole.content)
        assert size == int(whole.headers["content-length"]) == web.get(f"/v1/videos/{ids[0]}").json()["bytes"]
        part = web.get(url, headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
        assert part.headers["content-range"] == f"bytes 4-7/{size}"
        assert web.get(url, headers={"Range": "bytes=-5"}).content == whole.content[-5:]
        beyond = web.get(url, headers={"Range": f"bytes={size}-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
        assert web.get(url, params={"variant": "thumbnail"}).content[8:12] == b"WEBP"
        names = {f"{job_id}.{part}" for job_id in ids for part in ("video.mp4", "thumbnail.webp", "spritesheet.jpg")}
        assert len(made.server.files.names()) == len(names), "nothing else is left there"
        assert web.delete(f"/v1/videos/{ids[1]}").status_code == 200
        assert not any(name.startswith(ids[1]) for name in made.server.files.names())
        # as an upload that was cut short leaves things
        made.server.files._fs.pipe_file(f"videos/finished/{ids[2]}.other.mp4", b"half")
    with running(tmp_path, files_url=bucket) as made, httpx.Client(base_url=made.url, timeout=60) as web:
        assert web.get(url).content == whole.content, "it is there after a restart"
        assert not made.server.files.exists(f"{ids[2]}.other.mp4")
        made.server.settings.keep_hours = 1e-9
        Sweeper(made.server.store, made.server.files, made.server.runner, made.server.settings).sweep()
        assert made.server.files.names() == []
        assert web.get(url).status_code == 404


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None), ("bytes=0-", (0, 10)), ("bytes=3-4", (3, 5)), ("bytes=8-99", (8, 10)), ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)), ("bytes=5-4", None), ("bytes=1-2,4-5", None), ("items=0-1", None), ("bytes=-", None),
    ],
)  # fmt: skip
def test_what_a_range_asks_for(header: str | None, part: tuple[int, int] | None) -> None:
    assert asked_part(header, 10) == part


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=-0", "bytes=99-100"])
def test_no_byte_of_the_file(header: str) -> None:
    with pytest.raises(ValueError, match="the file has 10 bytes"):
        asked_part(header, 10)
