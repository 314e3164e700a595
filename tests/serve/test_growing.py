"""Videos that are watched while they are made, and that go on."""

import io
import threading
from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from fastvideo.entrypoints.serve.growing import FragmentedMP4
from tests.serve.stand_in import FromFrames, StandIn, running, wait_until
from tests.serve.test_jobs import post, state_of
from tests.serve.test_references import ask, clip, completed


def frames_in(data: bytes) -> list[np.ndarray]:  # type: ignore[type-arg]
    """The frames of a file, or of what there is of it."""
    with av.open(io.BytesIO(data), format="mov") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_file_that_grows(tmp_path: Path) -> None:
    """After each chunk, all its frames but the last are there; after the end that one too."""
    levels = np.linspace(20, 220, 12).astype(np.uint8)
    frames = np.stack([np.full((33, 48, 3), level, np.uint8) for level in levels])
    path, seen = tmp_path / "a.mp4", []
    made = FragmentedMP4(path, 8)
    for start in (0, 4, 8):
        made.add(frames[start : start + 4])
        seen.append(len(frames_in(path.read_bytes())))
    made.close()
    found = frames_in(path.read_bytes())
    assert seen == [3, 7, 11]
    assert [frame.shape for frame in found] == [(34, 48, 3)] * 12
    assert max(abs(int(frame.mean()) - int(level)) for frame, level in zip(found, levels, strict=True)) < 6


def test_it_is_watched_from_the_first_frame_to_the_last(tmp_path: Path) -> None:
    with running(tmp_path, model=StandIn(streams=True)) as made, httpx.Client(base_url=made.url, timeout=30) as web:
        made.model.go.clear()
        first = post(web, "one", num_frames=9, seed=200).json()["id"]
        second = post(web, "two", num_frames=9, seed=100).json()["id"]
        seen: dict[str, bytes] = {first: b"", second: b""}

        def watch(job_id: str) -> None:
            with httpx.stream("GET", f"{made.url}/v1/videos/{job_id}/stream", timeout=60) as answer:
                assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
                for piece in answer.iter_raw():
                    seen[job_id] += piece

        watching = [threading.Thread(target=watch, args=(job_id,)) for job_id in seen]
        for thread in watching:
            thread.start()
        wait_until(lambda: made.server.runner.streams.path(first))
        made.model.pace = 0.4
        made.model.go.set()
        wait_until(lambda: len(seen[first]) > 1000)
        assert state_of(web, first) == "in_progress", "frames are there before the video is"
        wait_until(lambda: state_of(web, second) == "completed")
        for thread in watching:
            thread.join(30)
        for job_id, level in ((first, 200), (second, 100)):
            frames = frames_in(seen[job_id])
            assert len(frames) == 9
            assert abs(int(np.mean(frames)) - level) < 6
        answer = web.get(f"/v1/videos/{first}/stream")
        assert answer.content == web.get(f"/v1/videos/{first}/content").content, "afterwards it is the ordinary file"
        assert b"moof" not in answer.content
        failed = post(web, "fail").json()["id"]
        assert web.get(f"/v1/videos/{failed}/stream").status_code in (200, 404)
        wait_until(lambda: state_of(web, failed) == "failed")
        assert web.get(f"/v1/videos/{failed}/stream").status_code == 404
        assert web.post("/v1/images/generations", json={"prompt": "x"}).status_code == 200


def test_a_model_that_makes_all_frames_at_once(tmp_path: Path) -> None:
    with running(tmp_path) as made, httpx.Client(base_url=made.url) as web:
        made.model.go.clear()
        job = post(web).json()["id"]
        answer = web.get(f"/v1/videos/{job}/stream")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_by_model")
        made.model.go.set()
        wait_until(lambda: state_of(web, job) == "completed")
        assert web.get(f"/v1/videos/{job}/stream").headers["content-type"] == "video/mp4"


def test_the_server_may_stop_meanwhile(tmp_path: Path) -> None:
    ended = threading.Event()
    with running(tmp_path, model=StandIn(streams=True)) as made, httpx.Client(base_url=made.url) as web:
        made.model.go.clear()
        job = post(web).json()["id"]

        def watch() -> None:
            with pytest.raises(httpx.HTTPError), httpx.stream("GET", f"{made.url}/v1/videos/{job}/stream") as answer:
                for _ in answer.iter_raw():
                    continue
                raise httpx.HTTPError("it ended in order")
            ended.set()

        thread = threading.Thread(target=watch)
        thread.start()
        wait_until(lambda: made.server.runner.streams.path(job))
    thread.join(30)
    assert ended.is_set()


def test_a_video_goes_on_from_its_last_frames(tmp_path: Path) -> None:
    data = clip(tmp_path)
    with running(tmp_path / "data", model=StandIn(FromFrames), defaults={"num_frames": 13}) as made:
        job = ask(made, "/extensions", {"video": data}, seconds="0.5").raise_for_status().json()
        completed(made, job["id"])
        assert made.model.shown[-1]["start_video"].shape == (9, 32, 48, 3), "13 frames are usual, and 4 are new"
        assert job["num_frames"] == 9 + 4
        job = ask(made, "/extensions", {"video": data}, seconds="1").raise_for_status().json()
        completed(made, job["id"])
        assert (len(made.model.shown[-1]["start_video"]), job["num_frames"]) == (5, 9 + 8)
        assert abs(int(made.model.shown[-1]["start_video"][0].mean()) - 120) < 4, "its last frames"
