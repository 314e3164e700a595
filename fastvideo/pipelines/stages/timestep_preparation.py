"""The timesteps of the schedule."""

from collections.abc import Callable

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.schedulers import Scheduler
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.pipelines.stages.base import PipelineStage
from fastvideo.platforms import current_platform

Skipped = Callable[[ForwardBatch], int]
"""How many steps at the start of the schedule a request leaves out."""


def all_steps(batch: ForwardBatch) -> int:
    """None is left out."""
    return 0


class TimestepPreparationStage(PipelineStage):
    """Sets the scheduler to the start of a schedule of `num_inference_steps` steps, or to a later one of them."""

    name = "timestep_preparation"
    writes = ("timesteps",)

    def __init__(self, scheduler: Scheduler, skipped: Skipped = all_steps) -> None:
        self.scheduler = scheduler
        self.skipped = skipped

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        self.scheduler.set_timesteps(batch.sampling.num_inference_steps, current_platform(args.device).device)
        skipped = self.skipped(batch)
        if skipped:
            self.scheduler.skip(skipped)
        batch.timesteps = self.scheduler.timesteps
        return batch
