"""The command line as a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMALL = ("--size", "48x32", "--frames", "5", "--steps", "2")
"""Flags of a request that takes no time."""


def start(*argv: str, **options: Any) -> subprocess.Popen[str]:
    """The command line as a process group of its own."""
    command = [sys.executable, "-m", "fastvideo.entrypoints.cli", *argv]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, start_new_session=True, **pipes, **options)


def wait_for_imports(process: "subprocess.Popen[str]") -> None:
    """Return once torch is being loaded, which takes seconds."""
    maps = Path(f"/proc/{process.pid}/maps")
    while maps.exists() and "libtorch" not in maps.read_text():
        time.sleep(0.05)
