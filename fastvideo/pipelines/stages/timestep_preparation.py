"""The timesteps of the schedule."""

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.schedulers import Scheduler
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.pipelines.stages.base import PipelineStage
from fastvideo.platforms import current_platform


class TimestepPreparationStage(PipelineStage):
    """Sets the scheduler to the start of a schedule of `num_inference_steps` steps."""

    name = "timestep_preparation"
    writes = ("timesteps",)

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        self.scheduler.set_timesteps(batch.sampling.num_inference_steps, current_platform(args.device).device)
        batch.timesteps = self.scheduler.timesteps
        return batch
