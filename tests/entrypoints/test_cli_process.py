"""The command line as a process: Ctrl-C, how quick it is, and who reads what it says."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest

from tests.entrypoints.processes import SMALL, start, wait_for_imports


def test_ctrl_c_stops_at_the_next_step_and_leaves_nothing(in_folder: Path, wan_repo: Path) -> None:
    process = start("generate", "x", "--model", str(wan_repo), "-o", "a.mp4", *SMALL[:4], "--steps", "900")
    assert process.stderr is not None
    while "loaded on" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "fastvideo: stopped"
    assert "Traceback" not in err
    assert list(in_folder.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_ctrl_c_while_it_starts(in_folder: Path, wan_repo: Path) -> None:
    process = start("generate", "x", "--model", str(wan_repo), "-o", "a.mp4", *SMALL)
    wait_for_imports(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list(in_folder.iterdir()) == []


def test_help_is_quick_and_says_all() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out, _ = start("generate", "--help").communicate(timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "request.sampling: height, width, num_frames" in " ".join(out.split())
    # processor time, as a busy machine must not fail the test; it is the half on an idle one
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.8


def test_a_reader_that_leaves() -> None:
    process = start("models")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.wait(timeout=60)


def test_the_shipped_model_is_named_when_none_is_given(in_folder: Path) -> None:
    process = start("generate", "x", "-o", "a.avi")
    _, err = process.communicate(timeout=60)
    assert err.startswith("INFO no --model: using shapes-t2v, the model in the package\n")
    assert process.returncode == 1
