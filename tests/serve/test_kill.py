"""The command itself, with the model in the package: it serves, and `kill -9` loses nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from fastvideo.entrypoints.media import read_frames, read_metadata
from tests.serve.stand_in import PATIENCE, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals")]
ROOT = Path(__file__).parents[2]
SMALL = {"num_frames": 5, "num_inference_steps": 2, "size": "96x96", "guidance_scale": 1.0}


class Process:
    """`fastvideo serve` in a folder, on a port that the system chose."""

    def __init__(self, folder: Path, *flags: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fastvideo.entrypoints.cli", "serve", "--server.port", "0", *flags]
        log = folder / "log.txt"
        with log.open("a") as file:
            began = file.tell()
            self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=file, stderr=file)
        self.log = log

        def where() -> str:
            assert self.process.poll() is None, log.read_text()
            lines = [line for line in log.read_text()[began:].splitlines() if "serving on" in line]
            return lines[0].split()[3] if lines else ""

        try:
            wait_until(where)
            self.web = httpx.Client(base_url=where(), timeout=30)
            wait_until(lambda: self.answers() == 200)
        except BaseException:
            self.process.kill()
            raise

    def answers(self) -> int:
        """The status of /ready; 0 where nobody answers yet."""
        try:
            return self.web.get("/ready").status_code
        except httpx.TransportError:
            return 0

    def post(self, prompt: str, **fields: Any) -> str:
        """Ask for a small video."""
        made: str = (
            self.web.post("/v1/videos", json={"prompt": prompt, **SMALL, **fields}).raise_for_status().json()["id"]
        )
        return made

    def get(self, job_id: str) -> dict[str, Any]:
        """A job."""
        made: dict[str, Any] = self.web.get(f"/v1/videos/{job_id}").raise_for_status().json()
        return made

    def end(self, number: int) -> int:
        """Send a signal, and wait."""
        self.web.close()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def test_kill_loses_nothing(tmp_path: Path) -> None:
    first = Process(tmp_path)
    try:
        done = first.post("a red circle moving left on a white background", seed=3)
        wait_until(lambda: first.get(done)["status"] == "completed")
        content = first.web.get(f"/v1/videos/{done}/content").content
        tasks = Path(f"/proc/{first.process.pid}/task").glob("*/children")
        children = sum(len(file.read_text().split()) for file in tasks)
        runs = first.post("a blue star on pink", num_inference_steps=150)
        queued = [first.post(f"a red circle on teal, {n}", seed=n) for n in range(3)]
        wait_until(lambda: first.get(runs).get("step"))
        assert first.get(runs)["total"] == 150
    finally:
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    # as a server that died while it wrote leaves things
    (tmp_path / "fastvideo-data" / "files" / f".{runs}.video-0123abcd.mp4").write_bytes(b"half")
    second = Process(tmp_path)
    try:
        assert second.get(done)["status"] == "completed"
        assert second.web.get(f"/v1/videos/{done}/content").content == content
        assert second.get(runs)["status"] in ("queued", "in_progress")
        assert second.web.post(f"/v1/videos/{runs}/cancel").status_code == 200
        wait_until(lambda: all(second.get(job_id)["status"] == "completed" for job_id in queued))
        for number, job_id in enumerate(queued):
            file = tmp_path / "clip.mp4"
            file.write_bytes(second.web.get(f"/v1/videos/{job_id}/content").content)
            assert read_frames(file).shape == (5, 96, 96, 3)
            request = read_metadata(file)["request"]
            assert (request["seed"], request["prompt"]) == (number, f"a red circle on teal, {number}")
        listed = [video["id"] for video in second.web.get("/v1/videos").json()["data"]]
        assert listed == [*queued[::-1], runs, done], "no job is lost or doubled"
        names = {path.name.split(".")[0] for path in (tmp_path / "fastvideo-data" / "files").iterdir()}
        assert names == {done, *queued}
    finally:
        # the web server stops in order, and then ends by the signal that it was sent
        assert second.end(signal.SIGTERM) == -signal.SIGTERM, second.log.read_text()
    log = (tmp_path / "log.txt").read_text()
    assert children == 1, "the model has a process of its own"
    assert "1 are queued again" in log
    assert "API keys are off" in log
    assert "circle" not in log


def test_kill_while_several_are_made_together(tmp_path: Path) -> None:
    longer = {"size": "32x32", "num_frames": 1, "num_inference_steps": 150}
    first = Process(tmp_path)
    try:
        first.post("a blue star on pink", **longer)
        ids = [first.post(f"a red circle on teal, {n}", seed=n, **longer) for n in range(3)]
        wait_until(lambda: [first.get(one)["status"] for one in ids] == ["in_progress"] * 3)
        wait_until(lambda: first.get(ids[0]).get("step"))
    finally:
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    second = Process(tmp_path)
    try:
        wait_until(lambda: all(second.get(one)["status"] == "completed" for one in ids))
        for number, one in enumerate(ids):
            shown = second.get(one)
            assert (shown["seed"], shown["batch_size"]) == (number, 1), "each alone, as one may be what it died of"
            file = tmp_path / "clip.mp4"
            file.write_bytes(second.web.get(f"/v1/videos/{one}/content").content)
            assert read_frames(file).shape == (1, 32, 32, 3)
            assert read_metadata(file)["request"]["seed"] == number
        assert len(second.web.get("/v1/videos").json()["data"]) == 4, "no job is lost or doubled"
    finally:
        second.end(signal.SIGTERM)
    assert "3 are queued again" in (tmp_path / "log.txt").read_text()
