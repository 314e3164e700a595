"""Whole processes, ours and the reference's: a prompt to a file, imports, `--help`. No torch here."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvideo.configs.registry import SHIPPED_MODEL, SHIPPED_NAME
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.bench.records import EAGER, OURS, Case, Result, Settings
from fastvideo.utils import read_json

HERE = Path(__file__).parent
CLI = (sys.executable, "-m", "fastvideo.entrypoints.cli")
PROMPT = "a blue star bouncing on a pink background"
TINY_STEPS = 2
PIXEL_BOUND = 1 / 255
"""In fp32, the rounding to whole numbers may differ by one step."""


@dataclass(frozen=True)
class Machine:
    """Where processes are started, and with which environment."""

    work: Path
    """A folder for their files."""
    environment: tuple[str, ...]
    """NAME=value, and arguments of env(1) before those."""

    def run(self, *command: str, log: Path) -> None:
        """Run `command`, with what it prints in file `log`.

        Raises:
            ValueError: it failed; says the last line that it printed.
        """
        with log.open("wb") as file:
            done = subprocess.run(["env", *self.environment, *command], stdout=file, stderr=file, check=False)
        check(done.returncode, log)

    def launch(self, *command: str) -> tuple[float, int]:
        """Seconds and peak memory in bytes of the whole of `command`.

        Raises:
            ValueError: it failed; says the last line that it printed.
        """
        found, log = self.work / "launched.json", self.work / "launched.log"
        self.run(sys.executable, "-I", "-S", str(HERE / "launch.py"), str(found), str(log), *command,
                 log=self.work / "launch.log")  # fmt: skip
        measured = read_json(found)
        check(measured["code"], log)
        return measured["seconds"], measured["peak"]


def machine(settings: Settings, work: Path) -> Machine:
    """Where processes run with `settings`, in folder `work`.

    What `torch.compile` makes is kept there: no run finds what an earlier one left. Python keeps its bytecode beside
    the sources, as it does where nobody says otherwise, so that only the first start compiles them.
    """
    environment = ["-u", "PYTHONDONTWRITEBYTECODE", f"TORCHINDUCTOR_CACHE_DIR={work / 'inductor'}", "TQDM_DISABLE=1"]
    if settings.threads is not None:
        environment.append(f"OMP_NUM_THREADS={settings.threads}")
    return Machine(work, tuple(environment))


def check(code: int, log: Path) -> None:
    """Raise unless a process ended well.

    Raises:
        ValueError: it did not; says how, and the last line of its `log`.
    """
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        how = f"was stopped by signal {-code} (9: by the system, for want of memory)" if code < 0 else f"gave {code}"
        raise ValueError(f"the process {how}: {lines[-1].strip() if lines else 'it printed nothing'}")


def job(settings: Settings, ours: Path, theirs: Path) -> dict[str, tuple[str, ...]]:
    """The commands that make a clip of `PROMPT` with the model in the package: ours to file or folder `ours`, the
    reference's to `theirs`. Both compute in fp32, the model's own precision."""
    sampling = SamplingParam.from_pretrained(SHIPPED_NAME)
    steps = TINY_STEPS if settings.tiny else sampling.num_inference_steps
    wanted = {
        "height": sampling.height, "width": sampling.width, "frames": sampling.num_frames, "fps": sampling.fps,
        "steps": steps, "guidance": sampling.guidance_scale, "seed": sampling.seed,
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in wanted.items()]
    script = (sys.executable, str(HERE / "wan_reference_job.py"), str(SHIPPED_MODEL), PROMPT, str(theirs))
    return {
        OURS: (*CLI, "generate", PROMPT, "-o", str(ours), f"--steps={steps}", f"--generator.device={settings.device}"),
        EAGER: (*script, *flags, f"--device={settings.device}"),
    }


def commands(case: Case, settings: Settings, work: Path) -> dict[str, tuple[str, ...]]:
    """What `case` runs, by whose it is."""
    if case.name == "generate":
        return job(settings, work / "ours.mp4", work / "theirs.mp4")
    if case.name == "import":
        return {OURS: (sys.executable, "-c", "import fastvideo"), EAGER: (sys.executable, "-c", "import diffusers")}
    assert case.name == "help", case.name
    return {OURS: (*CLI, "--help"), EAGER: (sys.executable, "-c", "from diffusers import WanPipeline")}


def measure_program(case: Case, settings: Settings, where: Machine) -> Result:
    """Run the commands of `case` in turn, after a run of each that does not count, and compare what they make.

    Raises:
        ValueError: a command failed.
    """
    result = Result(case=case.name, about=case.about)
    if case.name == "generate":
        sampling = SamplingParam.from_pretrained(SHIPPED_NAME)
        result.about += f", {sampling.num_frames} frames of {sampling.width}x{sampling.height}"
        compare_jobs(settings, where, result)
    wanted = commands(case, settings, where.work)
    for command in wanted.values():
        where.launch(*command)
    result.seconds, result.host_peak = {name: [] for name in wanted}, dict.fromkeys(wanted, 0)
    for number in range(settings.rounds):
        for name in sorted(wanted, reverse=number % 2 == 0):
            seconds, peak = where.launch(*wanted[name])
            result.seconds[name].append(seconds)
            result.host_peak[name] = max(result.host_peak[name], peak)
    return result


def compare_jobs(settings: Settings, where: Machine, result: Result) -> None:
    """Put the largest difference between the clips, frames that no codec has touched, into `result`."""
    import numpy as np
    from PIL import Image

    folder, file = where.work / "frames", where.work / "frames.npy"
    for command in job(settings, folder, file).values():
        where.launch(*command)
    ours = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))])
    theirs = np.load(file)
    result.bound = PIXEL_BOUND
    same = ours.shape == theirs.shape
    result.errors[OURS] = float(np.abs(ours.astype(int) - theirs).max()) / 255 if same else float("inf")
    if result.errors[OURS] > PIXEL_BOUND:
        result.failures.append(f"ours: frames differ by {255 * result.errors[OURS]:g} of 255, bound 1")


def ask(where: Machine, settings: Settings, **request: str) -> dict[str, Any]:
    """The answer of a worker process to `request`.

    Raises:
        ValueError: it failed.
    """
    given, found = where.work / "request.json", where.work / "answer.json"
    given.write_text(json.dumps({**request, "settings": dataclasses.asdict(settings), "work": str(where.work)}))
    where.run(sys.executable, "-m", "fastvideo.entrypoints.bench.worker", str(given), str(found),
              log=where.work / "worker.log")  # fmt: skip
    return read_json(found)
