"""A real model that makes videos chunk by chunk, behind the command in a process of its own: the stream grows while
it is made, and a video goes on from its last frames."""

import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.entrypoints.media import read_frames, read_metadata, write_video
from fastvideo.entrypoints.serve.growing import FragmentedMP4
from tests.serve.stand_in import wait_until
from tests.serve.test_growing import frames_in
from tests.serve.test_kill import Process

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals")]
CHUNKS = 12
ASKED = {"prompt": "a red kite", "size": "96x64", "num_frames": 12 * CHUNKS - 3, "num_inference_steps": 4, "seed": 5,
         "fps": 8, "guidance_scale": 1.0}  # fmt: skip


@pytest.fixture(scope="module")
def server(causal_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The command, with the tiny causal model."""
    made = Process(tmp_path_factory.mktemp("causal"), "--generator.model", str(causal_repo))
    try:
        yield made
    finally:
        made.end(signal.SIGTERM)


def file_of(server: Process, job_id: str) -> Path:
    """The file of a video, once it is there."""
    wait_until(lambda: server.get(job_id)["status"] in ("completed", "failed"))
    assert server.get(job_id)["status"] == "completed", server.get(job_id)
    return server.log.parent / "fastvideo-data" / "files" / f"{job_id}.video.mp4"


def alone(repo: Path, folder: Path, **fields: object) -> tuple[np.ndarray, Path]:  # type: ignore[type-arg]
    """The frames [T, H, W, 3] that the generator makes by itself, and its file."""
    width, height = map(int, str(ASKED["size"]).split("x"))
    rest = {name: value for name, value in ASKED.items() if name not in ("prompt", "size")}
    wanted: dict[str, Any] = {"width": width, "height": height, **rest, **fields}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the server has; the last bits depend on it
    try:
        with VideoGenerator.from_pretrained(repo) as generator:
            file = str(folder / "alone.mp4")
            made: Any = generator.generate_video("a red kite", output_path=file, return_frames=True, **wanted)
    finally:
        torch.set_num_threads(threads)
    return np.stack(made.frames), Path(file)


def grown(frames: np.ndarray, folder: Path) -> np.ndarray:  # type: ignore[type-arg]
    """What one sees of `frames` in a stream."""
    made = FragmentedMP4(folder / "grown.mp4", int(str(ASKED["fps"])))
    made.add(frames)
    made.close()
    return np.stack(frames_in((folder / "grown.mp4").read_bytes()))


def test_a_stream_grows_while_the_video_is_made(server: Process, causal_repo: Path, tmp_path: Path) -> None:
    job = server.web.post("/v1/videos", json=ASKED).raise_for_status().json()["id"]
    seen, counts = b"", []
    with httpx.stream("GET", f"{server.web.base_url}/v1/videos/{job}/stream", timeout=60) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
        for piece in answer.iter_raw():
            seen += piece
            if server.get(job)["status"] == "in_progress":
                try:
                    counts.append(len(frames_in(seen)))
                except av.error.InvalidDataError:  # its head is not whole yet
                    continue
    assert len(set(counts)) >= 3, f"{counts}: it grows before the video is done"
    assert counts == sorted(counts)
    assert counts[0] < 12 * CHUNKS / 2
    streamed, final = np.stack(frames_in(seen)), read_frames(file_of(server, job))
    assert len(streamed) == 12 * CHUNKS - 3
    raw, file = alone(causal_repo, tmp_path)
    assert np.array_equal(final, read_frames(file)), "bit for bit what the generator alone makes"
    assert np.array_equal(streamed, grown(raw, tmp_path)), "and the stream has the same frames, each at its place"


def test_a_video_goes_on(server: Process, causal_repo: Path, tmp_path: Path) -> None:
    first = server.web.post("/v1/videos", json=ASKED | {"num_frames": 33}).raise_for_status().json()["id"]
    before = read_frames(file_of(server, first))
    asked = {"prompt": "a red kite", "video": {"id": first}, "seconds": 6, "seed": 6}
    answer = server.web.post("/v1/videos/extensions", json=asked).raise_for_status().json()
    assert answer["num_frames"] == 33 + 48, "whole chunks"
    streamed = np.stack(frames_in(server.web.get(f"/v1/videos/{answer['id']}/stream").content))
    joined = file_of(server, answer["id"])
    # 81 frames are usual, of which 48 are new: there is room for 33
    clip, _ = alone(causal_repo, tmp_path, num_frames=33 + 48, seed=6, start_video=before)
    expected = np.concatenate((before, clip[33:]))
    file = write_video(list(expected), tmp_path / "joined.mp4", 8, {})
    assert np.array_equal(read_frames(joined), read_frames(file))
    assert np.array_equal(streamed, grown(expected, tmp_path)), "the old frames first"
    assert read_metadata(joined)["extends"]["frames"] == 33
    # room for one chunk beside 72
    longer = server.web.post("/v1/videos/extensions", json=asked | {"seconds": 9}).raise_for_status().json()["id"]
    clip, _ = alone(causal_repo, tmp_path, num_frames=9 + 72, seed=6, start_video=before[-9:])
    file = write_video([*before, *clip[9:]], tmp_path / "longer.mp4", 8, {})
    assert np.array_equal(read_frames(file_of(server, longer)), read_frames(file))
    again = server.web.post(f"/v1/videos/{longer}/remix", json={"prompt": "a red kite"}).raise_for_status().json()
    assert again["num_frames"] == 33 + 72
    assert np.array_equal(read_frames(file_of(server, again["id"])), read_frames(file))


def test_what_is_too_short(server: Process) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8))))
        container.mux(stream.encode(None))
    answer = server.web.post("/v1/videos/extensions", data={"prompt": "x", "seconds": "2"},
                             files={"video": file.getvalue()})  # fmt: skip
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "video")
    assert "5 frames, too few for this model" in error["message"]
