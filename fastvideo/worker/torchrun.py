"""The executor under `torchrun`: every process runs the same program, and is one rank."""

import atexit
import gc
import hashlib
import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from fastvideo.envs import Launched
from fastvideo.models.loader.lora import LoraSet
from fastvideo.pipelines.composed_pipeline_base import Ended
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.worker.executor import one_by_one
from fastvideo.worker.rank import Plan, Rank, quieten

T = TypeVar("T")

FILES_TIMEOUT = timedelta(days=1)
"""For rank 0 to write a video or to hash weights; should it die, `torchrun` ends the others."""


_executors: "weakref.WeakSet[TorchrunExecutor]" = weakref.WeakSet()
"""Those of this process."""


class TorchrunExecutor:
    """Runs this process's rank. All processes make the same calls in the same order, and get the same results."""

    def __init__(self, plan: Plan, launched: Launched) -> None:
        """Join the others and load; raises as `Rank`."""
        quieten(launched.rank)
        made_group = not dist.is_initialized()
        self._rank: Rank | None = Rank(plan, rank=launched.rank, local_rank=launched.local_rank)
        self._first = launched.rank == 0
        self._loras = LoraSet()
        self._files: dist.ProcessGroup | None = dist.new_group(backend="gloo", timeout=FILES_TIMEOUT)
        # one request at a time: a pipeline's scheduler remembers where in the schedule it is
        self._lock = threading.Lock()
        _executors.add(self)
        if made_group:
            atexit.register(_leave)

    @property
    def attention_backend(self) -> str:
        """See `Executor`."""
        return self._running().attention_backend

    @property
    def threads(self) -> int:
        """See `Executor`."""
        return torch.get_num_threads()

    def execute(self, batch: ForwardBatch) -> ForwardBatch:
        """Run `batch`; the video is there on rank 0, and on the others with `return_frames`.

        Raises:
            ValueError: the processes give different requests.
        """
        with self._lock:
            rank = self._running()
            self._check_same(batch)
            token, report = batch.control.cancel, batch.control.report
            batch = rank.run(batch, lambda: token.cancelled, report)
            if batch.sampling.return_frames:
                batch.video = self._shared(batch.video)
            return batch

    def execute_together(self, batches: Sequence[ForwardBatch], ended: Ended) -> None:
        """See `Executor`."""
        one_by_one(self, batches, ended)

    def adapt(self, loras: LoraSet) -> None:
        """See `Executor`.

        Raises:
            ValueError: the processes ask for different LoRAs.
            RuntimeError: another process raised.
        """
        with self._lock:
            rank = self._running()
            wanted = [(adapter.nickname, adapter.hashes, strength) for adapter, strength in loras.adapters]
            self._check_alike(repr((wanted, loras.merged)).encode(), "LoRAs", "set_lora_adapter")
            error: BaseException | None = None
            try:
                rank.adapt(loras)
            except Exception as raised:
                error = raised
            failed = rank.groups.control.all_gather(torch.tensor([error is not None])).tolist()
            if any(failed) and error is None:
                rank.adapt(self._loras)
                error = RuntimeError(f"rank {failed.index(True)} could not take on the LoRA; its own error says why")
            if error is not None:
                raise error
            self._loras = loras

    def on_first(self, make: Callable[[], T]) -> T:
        """See `Executor`."""
        outcome: list[Any] = [None, None]
        if self._first:
            try:
                outcome[0] = make()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, group=self._files)
        if outcome[1] is not None:
            raise outcome[1]
        return cast(T, outcome[0])

    def shutdown(self) -> None:
        """Free the pipeline; waits for a batch that is running. The process group stays, for other generators."""
        with self._lock:
            self.free()

    def free(self) -> None:
        """Let go of the pipeline and of what it talks through, whether a batch runs or not."""
        self._rank = self._files = None

    def _check_same(self, batch: ForwardBatch) -> None:
        """Check that all processes ask for the same, apart from where it goes."""
        fields = {name: value for name, value in batch.sampling.to_dict().items() if name != "output_path"}
        request = repr((batch.prompts, batch.negative_prompts, fields)).encode() + pickle.dumps(batch.media)
        self._check_alike(request, "videos", "generate_video")

    def _check_alike(self, request: bytes, what: str, method: str) -> None:
        """Check that all processes give the same `request`, which is for `what`."""
        digest = int.from_bytes(hashlib.sha256(request).digest()[:7], "big")
        digests = self._running().groups.control.all_gather(torch.tensor([digest])).tolist()
        if len(set(digests)) > 1:
            others = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
            raise ValueError(
                f"the processes ask for different {what}: rank {', '.join(others)} for another than rank 0; under "
                f"torchrun every process must call {method} with the same arguments"
            )

    def _shared(self, video: torch.Tensor | None) -> torch.Tensor:
        """The video of rank 0 on every rank."""
        shape = self.on_first(lambda: None if video is None else tuple(video.shape))
        assert shape is not None
        return self._running().groups.control.broadcast(
            torch.empty(shape, dtype=torch.float32) if video is None else video
        )

    def _running(self) -> Rank:
        if self._rank is None:
            raise RuntimeError("the executor was shut down")
        return self._rank


def _leave() -> None:
    """End the process groups and their threads while there is an interpreter.

    A thread of gloo's may let go of the last tensor that it sent after the program has it back. Should the interpreter
    have ended by then, that aborts the process.
    """
    for executor in _executors:
        executor.free()
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
