"""Ray, where there is none until the executor starts one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worker.leftovers import alive, children_of, wait_for_end

pytestmark = [pytest.mark.distributed, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.pipelines.stand_ins import make_batch
from tests.worker.acting import acting_plan
from fastvideo.worker.ray_executor import RayExecutor
first = RayExecutor(acting_plan(distributed_executor_backend="ray"))
assert first.execute(make_batch(num_inference_steps=2)).video is not None
print("works", flush=True)
sys.stdin.readline()
first.shutdown()
import ray
print(ray.is_initialized(), flush=True)
sys.stdin.readline()
"""


def descendants(process: int) -> list[int]:
    """The processes that `process` started, and those that they started."""
    children = list(children_of(process))
    return children + [below for child in children for below in descendants(child)]


@pytest.mark.parametrize("killed", [False, True])
def test_it_ends_with_the_executor_or_the_program(killed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    code = SCRIPT.format(root=str(ROOT))
    program = subprocess.Popen([sys.executable, "-c", code], text=True, cwd=ROOT, **pipes)  # type: ignore[call-overload]
    while (line := program.stdout.readline()) != "works\n":
        assert line, program.wait()
    started = descendants(program.pid)
    workers = [process for process in started if "RayWorker" in Path(f"/proc/{process}/cmdline").read_text()]
    assert len(workers) == 2
    if killed:
        program.kill()
        assert wait_for_end(workers, 15) == []
    else:
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "False\n"
        assert alive(program.pid)
    # when the program is killed, Ray's own agents take a minute to give up
    assert wait_for_end(started, 120 if killed else 15) == []
    program.communicate()
    assert not [name for name in os.listdir("/dev/shm") if "plasma" in name]
