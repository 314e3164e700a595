"""Under `torchrun` every process runs the same program, and is one rank."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import atexit
import glob
import sys
sys.path.insert(0, {root!r})
from fastvideo import envs
from fastvideo.pipelines.pipeline_batch_info import Control
from fastvideo.worker.start import start_executor
from tests.pipelines.stand_ins import make_batch
from tests.worker.acting import acting_loras, acting_plan

@atexit.register  # runs after those that are registered from here on
def left():
    with open(f"{folder}/{{rank}}", "a") as file:
        names = [open(task + "/comm").read().strip() for task in glob.glob("/proc/self/task/*")]
        file.write("\\nthreads of groups: " + str(names.count("pt_gloo_runloop")))

plan = acting_plan()
rank = envs.torchrun().rank
executor = start_executor(plan.repo, plan.entry, plan.args, plan.pipeline_config, plan.layout)
said = []

def say(*words):
    said.append(" ".join(map(str, words)))

def fails(run):
    try:
        run()
    except Exception as error:
        say(type(error).__name__, error)

def refuse():
    raise OSError(f"rank {{rank}} cannot write")

seen = []
frames = executor.execute(make_batch(num_inference_steps=2, return_frames=True, control=Control(report=seen.append)))
say("frames", tuple(frames.video.shape), frames.video[0, 0, 0, 0, 2].item(), frames.peak_memory > 2**20, len(seen))
say("none", executor.execute(make_batch(num_inference_steps=2)).video is None)
say("first", executor.on_first(lambda: f"file of rank {{rank}}"))
fails(lambda: executor.on_first(refuse))
fails(lambda: executor.execute(make_batch(["all: refuse in latents"])))
fails(lambda: executor.execute(make_batch(["a", "b"][rank : rank + 1])))
control = Control()
if rank == 1:
    control.cancel.cancel()
fails(lambda: executor.execute(make_batch(num_inference_steps=10_000, control=control)))
executor.adapt(acting_loras("a", "b"))
def strength():
    made = executor.execute(make_batch(num_inference_steps=2, return_frames=True)).video
    return made[0, 0, 0, 0, 4].item()
say("strength", strength())
fails(lambda: executor.adapt(acting_loras("all: refuse in adapt")))
fails(lambda: executor.adapt(acting_loras("rank 1: refuse in adapt")))
fails(lambda: executor.adapt(acting_loras("ab"[rank])))
say("strength", strength())
say("threads", executor.threads)
executor.shutdown()
executor.shutdown()
fails(lambda: executor.execute(make_batch()))
again = start_executor(plan.repo, plan.entry, plan.args, plan.pipeline_config, plan.layout)
say("again", again.execute(make_batch(return_frames=True)).video is not None)
open(f"{folder}/{{rank}}", "w").write("\\n".join(said))
"""


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program on two processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=cwd, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_process_gets_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "program.py").write_text(PROGRAM.format(root=str(ROOT), folder=str(tmp_path)))
    made = torchrun("program.py", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    first, second = ((tmp_path / str(rank)).read_text().splitlines() for rank in range(2))
    assert first == [
        "frames (1, 3, 5, 16, 32) 1024.0 True 11",
        "none False",
        "first file of rank 0",
        "OSError rank 0 cannot write",
        "ValueError height=7: must be a multiple of 16; try 16",
        "ValueError the processes ask for different videos: rank 1 for another than rank 0; under torchrun every "
        "process must call generate_video with the same arguments",
        "Cancelled the request was cancelled",
        "strength 0.5",
        "ValueError height=7: must be a multiple of 16; try 16",
        "RuntimeError rank 1 could not take on the LoRA; its own error says why",
        "ValueError the processes ask for different LoRAs: rank 1 for another than rank 0; under torchrun every "
        "process must call set_lora_adapter with the same arguments",
        "strength 0.5",
        "threads 1",
        "RuntimeError the executor was shut down",
        "again True",
        "threads of groups: 0",  # they must not outlive the interpreter
    ]
    differences = {
        0: "frames (1, 3, 5, 16, 32) 1024.0 True 0",
        1: "none True",
        9: "ValueError height=7: must be a multiple of 16; try 16",
    }
    assert second == [differences.get(number, line) for number, line in enumerate(first)]


@pytest.mark.distributed
def test_the_command_line(wan_repo: Path, tmp_path: Path) -> None:
    command = ("-m", "fastvideo.entrypoints.cli", "generate", "x", "--model", str(wan_repo), "-o", "new/a.mp4")
    small = ("--size", "48x32", "--frames", "5", "--steps", "2")
    made = torchrun(*command, *small, "--generator.num_gpus", "2", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]
    assert made.stderr.count("saved new/a.mp4") == 1
    assert "new/a.mp4: 5 frames of 48x32" in made.stdout
    made = torchrun(*command, *small, "--generator.num_gpus", "4", cwd=tmp_path)
    assert made.returncode == 1
    assert "fastvideo: num_gpus=4: torchrun started 2 processes; use num_gpus=2" in made.stderr
