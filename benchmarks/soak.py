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
from functools import partial
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
LOAD = {"num_frames": 17, "num_inference_steps": 8, "size": "96x96"}
"""About a second of work, with guidance."""
SMALL = {"num_frames": 5, "num_inference_steps": 2, "size": "96x96", "guidance_scale": 1.0}
"""For what is killed: enough are finished at any moment."""
POLL_SECONDS = 0.5
START_SECONDS = 2.0
"""From the first client to the last."""


def before_others(pid: int) -> None:
    """Put a process, and not those that it has started, at a real-time priority."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(10))


class Server:
    """`fastvideo serve` in a folder."""

    def __init__(self, folder: Path, port: int, more: list[str], realtime: bool = False) -> None:
        self.more, self.realtime = more, realtime
        flags = ["--server.port", str(port), "--server.max_queue", "100000", "--server.max_jobs_per_key", "100000",
                 "--server.studio", "false", *more]  # fmt: skip
        command = [sys.executable, "-m", "fastvideo.entrypoints.cli", "serve", *flags]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.log = (folder / "log.txt").open("a")
        # the model is not before others, though who starts it may be by now
        usual = partial(os.sched_setscheduler, 0, os.SCHED_OTHER, os.sched_param(0)) if realtime else None
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=self.log, stderr=self.log, preexec_fn=usual
        )
        self.url = f"http://127.0.0.1:{port}"
        with httpx.Client() as web:
            while True:
                assert self.process.poll() is None, (folder / "log.txt").read_text()
                try:
                    if web.get(f"{self.url}/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        if realtime:
            before_others(self.process.pid)

    def memory(self) -> tuple[float, float]:
        """Resident MiB of the server, and of the process that runs the model; pages that both have count in both."""
        pids = [self.process.pid]
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids += [int(pid) for file in children for pid in file.read_text().split()]
        resident = []
        for pid in pids:
            status = Path(f"/proc/{pid}/status").read_text()
            resident.append(int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))))
        return resident[0] / 1024, sum(resident[1:]) / 1024

    def end(self, number: int) -> None:
        """Send a signal, and wait."""
        self.process.send_signal(number)
        self.process.wait()
        self.log.close()


class Load:
    """What the clients saw."""

    def __init__(self, server: Server, jobs: int) -> None:
        self.server = server
        self.jobs = jobs
        self.memory: dict[int, tuple[float, float]] = {}
        """Of the server and of the model, by percent of the jobs that were done."""
        self.seconds: list[float] = []
        """Of status calls, while videos are made."""
        self.answers: Counter[int] = Counter()
        self.made: dict[str, str] = {}
        """The state of each job, by its id."""

    @property
    def failed(self) -> int:
        """How many jobs did."""
        return sum(state != "completed" for state in self.made.values())

    @property
    def errors(self) -> int:
        """How many answers were a 5xx."""
        return sum(count for status, count in self.answers.items() if status >= 500)

    async def client(self, web: httpx.AsyncClient, number: int, clients: int, jobs: int) -> None:
        """Make `jobs` videos, one after the other, each watched by asking; clients do not ask in step."""
        await asyncio.sleep(START_SECONDS * number / clients)
        for turn in range(jobs):
            body = {"prompt": f"a red circle on teal, {number} {turn}", "seed": number * 1000 + turn, **LOAD}
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
            percent = 100 * len(self.made) // self.jobs
            for mark in (1, 25, 50, 75, 100):
                if percent >= mark and mark not in self.memory:
                    self.memory[mark] = self.server.memory()


async def drive(server: Server, clients: int, jobs: int) -> Load:
    """`clients` at once, `jobs` together."""
    load, limits = Load(server, jobs), httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as web:
        shares = [jobs // clients + (number < jobs % clients) for number in range(clients)]
        await asyncio.gather(*(load.client(web, number, clients, share) for number, share in enumerate(shares)))
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
    server = Server(folder, port, server.more, server.realtime)
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
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run server and clients, but not the model, before other programs (as root, on Linux)",
    )
    parser.add_argument("flags", nargs="*", help="more flags of fastvideo serve, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder, options.port, options.flags, options.realtime)
        if options.realtime:
            before_others(os.getpid())
        try:
            began = time.perf_counter()
            load = asyncio.run(drive(server, options.clients, options.jobs))
            seconds = time.perf_counter() - began
            everything = listed(server.url)
            lost = len(load.made.keys() - {job["id"] for job in everything})
            doubled = len(everything) - options.jobs
            server, whole, wrong = killed(folder, server, 10)
        except httpx.TransportError as error:
            raise RuntimeError(f"the server went away; its log:\n{(folder / 'log.txt').read_text()}") from error
        finally:
            server.end(signal.SIGTERM)
    print(table(load, seconds, lost, doubled, whole, wrong))
    return int(bool(lost or doubled or load.failed or load.errors or wrong))


def table(load: Load, seconds: float, lost: int, doubled: int, whole: int, wrong: int) -> str:
    """The table of docs/serving.md."""
    cuts = statistics.quantiles(load.seconds, n=100)
    marks = [str(mark) for mark in sorted(load.memory)]
    server, model = (
        ", ".join(f"{values[place]:.0f}" for _, values in sorted(load.memory.items())) + " MiB" for place in (0, 1)
    )
    rows = {
        f"seconds for {load.jobs} jobs; jobs a minute": f"{seconds:.0f}; {60 * load.jobs / seconds:.0f}",
        "jobs lost, doubled, failed": f"{lost}, {doubled}, {load.failed}",
        "answers, and those that were a 5xx": f"{sum(load.answers.values())}, {load.errors}",
        "a status call while videos are made: median, p99": f"{cuts[49] * 1e3:.1f} ms, {cuts[98] * 1e3:.1f} ms",
        f"memory with {', '.join(marks[:-1])} and {marks[-1]}% of the jobs done: server": server,
        "the same, of the process that runs the model": model,
        "after `kill -9`: of 10 jobs done and whole; lost or doubled": f"{whole}; {wrong}",
    }
    return "| what | measured |\n|---|---|\n" + "\n".join(f"| {what} | {value} |" for what, value in rows.items())


if __name__ == "__main__":
    sys.exit(main())
