"""What each rank does with the others, as far as one process shows it."""

import logging
import os
from pathlib import Path

import pytest
import torch

from fastvideo.distributed.groups import ONE_RANK, Group
from fastvideo.distributed.layout import Layout
from fastvideo.worker import shared, start
from fastvideo.worker.rank import AgreedCancel, Threads, quieten
from fastvideo.worker.ray_executor import import_ray
from tests.worker.acting import acting_plan


@pytest.mark.parametrize(
    ("most", "fixed", "cores", "processes", "threads"),
    [
        (16, False, 16, 2, 8),
        (16, False, 16, 3, 5),
        (4, False, 16, 2, 4),  # fewer were asked for
        (8, False, 16, 2, 8),  # what a clip's metadata says gives the same again
        (2, False, 2, 4, 1),
        (16, True, 16, 4, 16),
    ],
)
def test_threads_of_each_process(most: int, fixed: bool, cores: int, processes: int, threads: int) -> None:
    assert Threads(most, fixed).share(cores, processes) == threads


def test_a_cancelled_request_is_so_on_all_ranks() -> None:
    class TwoRanks(Group):
        others = 0

        def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.others

    ranks, asked = TwoRanks("control"), False
    token = AgreedCancel(lambda: asked, ranks)
    assert not token.cancelled
    ranks.others = 1
    assert token.cancelled
    ranks.others, asked = 0, True
    assert token.cancelled
    alone = AgreedCancel(lambda: False, ONE_RANK.control)
    alone.cancel()
    assert alone.cancelled


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_tensor_in_memory_without_a_name(dtype: torch.dtype) -> None:
    before, files = os.listdir("/dev/shm"), len(os.listdir("/proc/self/fd"))
    tensor = torch.arange(24).view(2, 3, 4).to(dtype).transpose(0, 2)
    with shared.stored(tensor) as (file, layout):
        received = shared.load(os.dup(file), layout)
    assert torch.equal(received, tensor)
    assert received.is_contiguous()
    received[0] = 1  # the receiver's own
    assert not set(os.listdir("/dev/shm")) - set(before)
    del received
    assert len(os.listdir("/proc/self/fd")) == files


def test_the_log_of_other_ranks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("fastvideo")
    handlers, level = logger.handlers[:], logger.level
    try:
        logger.handlers[:], logger.level = [logging.StreamHandler()], logging.INFO
        quieten(0)
        logger.info("loaded")
        quieten(3)
        logger.info("loaded")
        logger.warning("short of memory")
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
    assert capsys.readouterr().err == "loaded\nWARNING rank 3: short of memory\n"


class TestStart:
    @pytest.fixture
    def launched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if `torchrun` had started this process, with another."""
        variables = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    def start(self, layout: Layout, **args: str) -> None:
        """Start an executor of the acting pipeline."""
        plan = acting_plan(layout, **args)
        start.start_executor(plan.repo, plan.entry, plan.args, plan.pipeline_config, plan.layout)

    @pytest.mark.parametrize("layout", [Layout(), Layout(ulysses=4)])
    def test_another_number_than_torchruns(self, launched: None, layout: Layout) -> None:
        message = f"num_gpus={layout.world}: torchrun started 2 processes; use num_gpus=2"
        with pytest.raises(ValueError, match=message):
            self.start(layout)

    def test_ray_under_torchrun(self, launched: None) -> None:
        with pytest.raises(ValueError, match="distributed_executor_backend='ray': torchrun starts the processes here"):
            self.start(Layout(ulysses=2), distributed_executor_backend="ray")

    def test_more_devices_than_there_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(start.Plan, "device_type", "cuda")
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        with pytest.raises(ValueError, match="num_gpus=2: this machine has 1; use num_gpus=1, or several machines"):
            self.start(Layout(ulysses=2))

    def test_a_device_for_one_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(start.Plan, "device_type", "mps")
        with pytest.raises(ValueError, match="num_gpus=2: device 'mps' runs in one process; use num_gpus=1"):
            self.start(Layout(ulysses=2))

    def test_without_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "ray", None)
        with pytest.raises(ImportError, match=r"pip install 'fastvideo\[ray\]'"):
            import_ray()
        with pytest.raises(ImportError, match="distributed_executor_backend='ray'"):
            self.start(Layout(ulysses=2), distributed_executor_backend="ray")


def test_every_variable_goes_to_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fastvideo import envs

    monkeypatch.setenv("FASTVIDEO_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("FASTVIDEO_ATTENTION_BACKEND", "TORCH_SDPA")
    assert envs.own_variables() == {
        "FASTVIDEO_CACHE_ROOT": str(tmp_path),
        "FASTVIDEO_ATTENTION_BACKEND": "TORCH_SDPA",
    }
