"""The executor in this process."""

import gc
import threading
import weakref
from pathlib import Path

import pytest

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.worker.executor import Executor
from fastvideo.worker.in_process import InProcessExecutor
from tests.pipelines.stand_ins import make_batch


@pytest.fixture
def executor(wan_repo: Path) -> InProcessExecutor:
    """An executor of the tiny model."""
    args = FastVideoArgs(model=str(wan_repo), device="cpu", precision="fp32")
    repo = resolve_repo(wan_repo)
    return InProcessExecutor(repo, repo.entry, args, args.resolved_pipeline_config())


def test_it_runs_a_batch_and_names_its_backend(executor: InProcessExecutor) -> None:
    as_protocol: Executor = executor
    batch = as_protocol.execute(make_batch(num_inference_steps=2))
    assert batch.video is not None
    assert batch.video.shape == (1, 3, 5, 16, 32)
    assert as_protocol.attention_backend == "TORCH_SDPA"


def test_it_frees_the_model(executor: InProcessExecutor) -> None:
    weight = weakref.ref(executor._running().components["transformer"].proj_out.weight)  # type: ignore[attr-defined]
    assert weight() is not None
    executor.shutdown()
    executor.shutdown()
    gc.collect()
    assert weight() is None
    with pytest.raises(RuntimeError, match="shut down"):
        executor.execute(make_batch())


def test_shutdown_waits_for_the_batch_that_runs(executor: InProcessExecutor) -> None:
    batch = make_batch(num_inference_steps=4)
    began = threading.Event()
    object.__setattr__(batch.control, "report", lambda progress: began.set())
    thread = threading.Thread(target=executor.execute, args=(batch,))
    thread.start()
    assert began.wait(60)
    executor.shutdown()
    thread.join(60)
    assert batch.video is not None
