"""`fastvideo serve --ray`: two servers with the model in the package, driven as one; and what does not go with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.serve.records import replica_of
from tests.serve.stand_in import wait_until
from tests.serve.test_kill import ROOT, SMALL


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--server.ray_replicas", "2"], "ray_replicas=2: does nothing without --ray"),
        (["--ray", "--server.replica", "a"], "replica='a': does not go with --ray"),
        (["--ray", "--server.studio", "true"], "studio=True: does not go with --ray"),
        (["--ray", "--generator.num_gpus", "2", "--generator.distributed_executor_backend", "ray"],
         "distributed_executor_backend='ray': does not go with --ray"),
        (["--ray", "--generator.model", "nobody"], "nobody"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *flags]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals, /proc")
def test_two_servers(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    command = [sys.executable, "-m", "fastvideo.entrypoints.cli", "serve", "--ray", "--server.ray_replicas", "2",
               "--server.port", "0"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
           "RAY_worker_niceness": "0"}  # fmt: skip
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=file, stderr=file)

    def where() -> str:
        assert process.poll() is None, log.read_text()
        lines = [line for line in log.read_text().splitlines() if "serving on" in line and "(pid" not in line]
        return lines[0].split()[3] if lines else ""

    def ready() -> set[str]:
        return set(web.get("/ready").json()["replicas"])

    try:
        wait_until(where)
        with httpx.Client(base_url=where(), timeout=60) as web:
            wait_until(lambda: ready() == {"r0", "r1"})
            bodies = [{"prompt": f"a red circle on teal, {n}", "seed": n, **SMALL} for n in range(4)]
            ids = [web.post("/v1/videos", json=body).raise_for_status().json()["id"] for body in bodies]
            assert {replica_of(job_id) for job_id in ids} == {"r0", "r1"}
            done = lambda: all(web.get(f"/v1/videos/{one}").json()["status"] == "completed" for one in ids)  # noqa: E731
            wait_until(done)
            assert all(web.get(f"/v1/videos/{one}/content").content[4:8] == b"ftyp" for one in ids)
            assert len(web.get("/v1/videos").json()["data"]) == 4
            # one ends: Ray Serve starts another under its name, and its jobs are there again
            members = subprocess.run(["pgrep", "-f", "ray::ServeReplica:fastvideo-r0"], capture_output=True, text=True,
                                     check=True).stdout.split()  # fmt: skip
            os.kill(int(members[0]), signal.SIGKILL)
            wait_until(lambda: ready() == {"r1"})
            wait_until(lambda: ready() == {"r0", "r1"})
            wait_until(done)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
