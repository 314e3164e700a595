"""A server with the model in the package under load: many clients at once, then `kill -9` in the middle, and a restart.

    python benchmarks/soak.py --clients 50 --jobs 200

Prints a table, and ends with 1 when a job was lost or doubled, or an answer was a 5xx.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
SMALL = {"num_frames": 5, "num_inference_steps": 2, "size": "96x96", "guidance_scale": 1.0}
POLL_SECONDS = 0.5


class Server:
    """`fastvideo serve` in a folder."""

    def __init__(self, folder: Path, port: int) -> None:
        flags = ["--server.port", str(port), "--server.max_queue", "100000", "--server.max_jobs_per_key", "100000",
                 "--server.studio", "false"]  # fmt: skip
        command = [sys.executable, "-m", "fastvideo.entrypoints.cli", "serve", *flags]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.log = (folder / "log.txt").open("a")
        self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=self.log, stderr=self.log)
        self.url = f"http://127.0.0.1:{port}"
        with httpx.Client() as web:
            while True:
                assert self.process.poll() is None, (folder / "log.txt").read_text()
                try:
                    if web.get(f"{self.url}/ready").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.1)

    def memory(self) -> float:
        """Resident MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024

    def end(self, number: int) -> None:
        """Send a signal, and wait."""
        self.process.send_signal(number)
        self.process.wait()
        self.log.close()


class Load:
    """What the clients saw."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        """Of status calls, while videos are made."""
        self.answers: Counter[int] = Counter()
        self.made: dict[str, str] = {}
        """The state of each job, by its id."""

    async def client(self, web: httpx.AsyncClient, number: int, jobs: int) -> None:
        """Make `jobs` videos, one after the other, each watched by asking."""
        for turn in range(jobs):
            body = {"prompt": f"a red circle on teal, {number} {turn}", "seed": number * 1000 + turn, **SMALL}
            answer = await web.post("/v1/videos", json=body)
            self.answers[answer.status_code] += 1
            job = answer.json()
            while job["status"] in ("queued", "in_progress"):
                await asyncio.sleep(POLL_SECONDS)
                began = time.perf_counter()
                answer = await web.get(f"/v1/videos/{job['id']}")
                self.seconds.append(time.perf_counter() - began)
                self.answers[answer.status_code] += 1
                job = answer.json()
            self.made[job["id"]] = job["status"]


async def drive(url: str, clients: int, jobs: int) -> Load:
    """`clients` at once, `jobs` together."""
    load, limits = Load(), httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as web:
        shares = [jobs // clients + (number < jobs % clients) for number in range(clients)]
        await asyncio.gather(*(load.client(web, number, share) for number, share in enumerate(shares)))
    return load


def listed(url: str) -> list[dict[str, object]]:
    """All videos, page by page."""
    found: list[dict[str, object]] = []
    with httpx.Client(base_url=url, timeout=60) as web:
        while True:
            after = {"after": found[-1]["id"]} if found else {}
            page = web.get("/v1/videos", params={"limit": 100, **after}).json()
            found += page["data"]
            if not page["has_more"]:
                return found


def killed(folder: Path, server: Server, jobs: int) -> tuple[Server, int, int]:
    """Queue jobs, `kill -9` after the first is done, start again: the new server, how many are done in the end, and how
    many are lost or there twice."""
    with httpx.Client(base_url=server.url, timeout=60) as web:
        ids = [web.post("/v1/videos", json={"prompt": f"kite {n}", **SMALL}).json()["id"] for n in range(jobs)]
        while web.get(f"/v1/videos/{ids[0]}").json()["status"] != "completed":
            time.sleep(0.05)
    port = int(server.url.rpartition(":")[2])
    server.end(signal.SIGKILL)
    server = Server(folder, port)
    while any(job["status"] in ("queued", "in_progress") for job in listed(server.url)):
        time.sleep(0.5)
    states = Counter(str(job["id"]) for job in listed(server.url) if job["id"] in ids and job["status"] == "completed")
    with httpx.Client(base_url=server.url, timeout=60) as web:
        whole = [job_id for job_id in states if web.get(f"/v1/videos/{job_id}/content").content[4:8] == b"ftyp"]
    return server, len(whole), sum(states[job_id] != 1 for job_id in ids)


def main() -> int:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--port", type=int, default=8971)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder, options.port)
        try:
            asyncio.run(drive(server.url, options.clients, options.clients))
            before, began = server.memory(), time.perf_counter()
            load = asyncio.run(drive(server.url, options.clients, options.jobs))
            seconds, after = time.perf_counter() - began, server.memory()
            everything = listed(server.url)
            lost = len(load.made.keys() - {job["id"] for job in everything})
            doubled = len(everything) - options.clients - options.jobs
            server, whole, wrong = killed(folder, server, 10)
        finally:
            server.end(signal.SIGTERM)
    cuts = statistics.quantiles(load.seconds, n=100)
    errors = sum(count for status, count in load.answers.items() if status >= 500)
    failed = sum(state != "completed" for state in load.made.values())
    rows = [
        ("clients at once", options.clients), ("jobs", options.jobs), ("seconds", f"{seconds:.0f}"),
        ("jobs lost, doubled, failed", f"{lost}, {doubled}, {failed}"), ("answers", sum(load.answers.values())),
        ("answers that were a 5xx", errors),
        ("a status call while videos are made: median, p99", f"{cuts[49] * 1e3:.1f} ms, {cuts[98] * 1e3:.1f} ms"),
        ("memory of the server before and after", f"{before:.0f} MiB, {after:.0f} MiB"),
        ("after kill -9: of 10 jobs done and whole; lost or doubled", f"{whole}; {wrong}"),
    ]  # fmt: skip
    print("| what | measured |\n|---|---|\n" + "\n".join(f"| {what} | {value} |" for what, value in rows))
    return int(bool(lost or doubled or failed or errors or wrong))


if __name__ == "__main__":
    sys.exit(main())
