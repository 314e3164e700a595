"""The generator and the command line on two processes, with a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.entrypoints.media import read_metadata
from tests.worker.leftovers import alive, children_of, wait_for_end

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
CAT = "a red cat walks over the sea"
SMALL: dict[str, Any] = {
    "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 3, "guidance_scale": 4.0, "seed": 5,
    "negative_prompt": "blurry", "return_frames": True,
}  # fmt: skip

SCRIPT = """
import json, sys, torch
from fastvideo import VideoGenerator
model, folder, fields = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
generator = VideoGenerator.from_pretrained(model, precision="fp32", device="cpu", num_gpus=2)
shown = []
def progress(report):
    if report.preview is not None:
        shown.append([report.step, *report.preview.shape])
result = generator.generate_video(
    fields.pop("prompt"), output_path=folder + "/clip.mp4", progress=progress, preview_every=2, **fields
)
torch.save(result.samples, folder + "/samples.pt")
workers = [worker.process.pid for worker in generator._executor._crew._workers]
heavy = [name for name in ("diffusers", "transformers") if name in sys.modules]
print(json.dumps([workers, heavy, generator._executor.threads, shown]))
"""
"""It has no `if __name__ == "__main__"`, and does not shut the generator down."""


def run(*command: str, **options: Any) -> subprocess.Popen[str]:
    """A program, as a process group of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **options.pop("env", {})}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], env=env, start_new_session=True, **pipes, **options)


def long_run(model: Path, folder: Path) -> subprocess.Popen[str]:
    """`fastvideo generate` on two processes in `folder`, which has loaded and goes on for long."""
    program = run(
        "-m", "fastvideo.entrypoints.cli", "generate", "x", "--model", str(model), "-o", "a.mp4", "--size", "48x32",
        "--frames", "5", "--steps", "900", "--generator.num_gpus", "2", cwd=folder,
    )  # fmt: skip
    assert program.stderr is not None
    while "loaded on" not in program.stderr.readline():
        assert program.poll() is None
    return program


def test_a_script_makes_what_one_process_makes(wan_repo: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    fields = json.dumps({"prompt": CAT, **SMALL})
    program = run(str(tmp_path / "script.py"), str(wan_repo), str(tmp_path), fields, env={"OMP_NUM_THREADS": "1"})
    out, err = program.communicate(timeout=200)
    assert program.returncode == 0, err
    workers, heavy, threads, shown = json.loads(out)
    assert shown == [[2, 32, 48, 3]], "the first rank draws previews"
    assert err.count("loaded on cpu (2 processes: cfg=2 vae)") == err.count("INFO") - 1 == 1
    assert heavy == [], "who computes nothing loads nothing"
    assert wait_for_end(workers, 5) == []
    made = torch.load(tmp_path / "samples.pt")
    with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu") as generator:
        expected = generator.generate_video(CAT, save_video=False, **SMALL)
    assert not isinstance(expected, list)
    assert (made - expected.samples).abs().max() < 1 / 255
    metadata = read_metadata(tmp_path / "clip.mp4")
    assert (metadata["threads"], threads) == (1, 1)
    assert metadata["attention_backend"] == "TORCH_SDPA"


def test_ctrl_c_stops_at_the_next_step_and_leaves_nothing(wan_repo: Path, tmp_path: Path) -> None:
    program = long_run(wan_repo, tmp_path)
    workers = list(children_of(program.pid))
    assert len(workers) == 2
    time.sleep(1)
    assert all(map(alive, workers))
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    out, err = program.communicate(timeout=60)
    assert (program.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "fastvideo: stopped"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    assert not any(map(alive, workers))
    with pytest.raises(ProcessLookupError):
        os.killpg(program.pid, 0)


@pytest.mark.distributed
@pytest.mark.parametrize("seconds", [0.0, 0.3, 2.0])
def test_ctrl_c_while_they_start(wan_repo: Path, tmp_path: Path, seconds: float) -> None:
    program = run(
        "-m", "fastvideo.entrypoints.cli", "generate", "x", "--model", str(wan_repo), "-o", "a.mp4", "--size", "48x32",
        "--frames", "5", "--steps", "900", "--generator.num_gpus", "2", cwd=tmp_path,
    )  # fmt: skip
    while not children_of(program.pid):
        assert program.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    os.killpg(program.pid, signal.SIGINT)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(program.pid, 0)


@pytest.mark.distributed
def test_a_repo_that_is_refused_and_a_worker_that_dies_in_one_line(wan_repo: Path, tmp_path: Path) -> None:
    program = long_run(wan_repo, tmp_path)
    time.sleep(1)
    os.kill(max(children_of(program.pid)), signal.SIGKILL)
    out, err = program.communicate(timeout=60)
    assert (program.returncode, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("fastvideo: WorkerError: rank 1 of 2 was killed by SIGKILL during denoising, ")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
