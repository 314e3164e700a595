"""How much longer a server takes for its queue when it makes each job alone.

python benchmarks/serve_together.py                          16 jobs of 5 frames, in three rounds
python benchmarks/serve_together.py --frames 1 --rounds 5

Starts `fastvideo serve` with the model in the package and one thread twice, with `max_batch_size` 1 and more, and gives
jobs to one and then the other. While a first job runs the others are queued; what is measured is from its end to
theirs: the time that passes, and that of the processors in the server's processes, in which other programs show less.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

PROMPTS = ("a red circle moving left on a white background", "a blue star on pink", "on teal, an orange square grows")
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(folder: Path, most: int) -> Iterator[tuple[httpx.Client, int]]:
    """A server that is ready, and its process, where the model runs too: one of its own would let others go first."""
    log = folder / "log.txt"
    command = [sys.executable, "-m", "fastvideo.entrypoints.cli", "serve", "--server.port", "0", "--server.studio",
               "false", "--server.max_batch_size", str(most), "--server.own_process", "false"]  # fmt: skip
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=file, stderr=file
        )
    try:
        while "serving on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        url = log.read_text().split("serving on ")[1].split()[0]
        with httpx.Client(base_url=url, timeout=60) as web:
            while web.get("/ready").status_code != 200:
                time.sleep(0.1)
            yield web, process.pid
    finally:
        process.terminate()
        process.wait()


def processor_seconds(process: int) -> float:
    """Of a process and of those that it started."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    children = {int(child) for file in Path(f"/proc/{process}/task").glob("*/children")
                for child in file.read_text().split()}  # fmt: skip
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(map(processor_seconds, children))


class Client:
    """Of a server, whose jobs have the same `fields`."""

    def __init__(self, web: httpx.Client, process: int, fields: dict[str, Any]) -> None:
        self.web, self.process, self.fields = web, process, fields

    def post(self, number: int, **more: Any) -> str:
        """Ask for a video."""
        body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, **self.fields, **more}
        made: str = self.web.post("/v1/videos", json=body).raise_for_status().json()["id"]
        return made

    def get(self, job: str) -> dict[str, Any]:
        """A job, once it is done."""
        while (found := self.web.get(f"/v1/videos/{job}").raise_for_status().json())["status"] != "completed":
            assert found["status"] != "failed", found
            time.sleep(0.02)
        made: dict[str, Any] = found
        return made

    def measured(self, jobs: int) -> tuple[float, float, list[int]]:
        """Seconds that pass, seconds of processors, and with how many each of the jobs was denoised."""
        holds = self.post(0, num_inference_steps=8)
        ids = [self.post(number) for number in range(jobs)]
        self.get(holds)
        began, used = time.perf_counter(), processor_seconds(self.process)
        sizes = [self.get(job)["batch_size"] for job in ids]
        return time.perf_counter() - began, processor_seconds(self.process) - used, sizes


def main() -> None:
    """Measure in turn, and print each and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", default="96x96")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=4, help="max_batch_size to compare with 1")
    options = parser.parse_args()
    fields = {"num_frames": options.frames, "num_inference_steps": options.steps, "size": options.size}
    seen: dict[int, list[tuple[float, float]]] = {1: [], options.most: []}
    with ExitStack() as stack:
        clients = {
            most: Client(*stack.enter_context(serving(Path(stack.enter_context(tempfile.TemporaryDirectory())), most)),
                         fields)
            for most in seen
        }  # fmt: skip
        for client in clients.values():
            client.measured(2 * options.most)  # what is tried once
        for _ in range(options.rounds):
            for most, client in clients.items():
                passed, used, sizes = client.measured(options.jobs)
                seen[most].append((passed, used))
                print(f"max_batch_size {most}: {passed:.1f} s, {used:.1f} s of processors, {sizes}", flush=True)
    for index, name in enumerate(("passed", "of processors")):
        alone, together = (statistics.median(one[index] for one in seen[most]) for most in seen)
        print(f"seconds {name}: {alone:.1f} one by one, {together:.1f} together, {alone / together:.2f} times as long")


if __name__ == "__main__":
    main()
