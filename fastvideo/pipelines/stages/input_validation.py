"""The request against the model, before anything is computed."""

from collections.abc import Callable

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.pipelines.stages.base import PipelineStage
from fastvideo.utils import require

CheckSampling = Callable[[SamplingParam], None]
"""Raises ValueError when the model cannot run these sampling parameters."""


class InputValidationStage(PipelineStage):
    """Refuses a request that the model cannot run; `check_sampling` knows the model's own rules."""

    name = "input_validation"

    def __init__(self, check_sampling: CheckSampling, model: type[SamplingParam] = SamplingParam) -> None:
        """`model`, the class of the model's sampling defaults, says which media and options it takes."""
        self.check_sampling = check_sampling
        self.model = model

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        self.check(batch)
        return batch

    def check(self, batch: ForwardBatch) -> None:
        """See `PipelineStage`."""
        check_prompts(batch.prompts)
        prompts, negatives = len(batch.prompts), len(batch.negative_prompts)
        require(
            negatives == prompts, "negative_prompts", batch.negative_prompts, f"one for each of the {prompts} prompts"
        )
        batch.sampling.check()
        batch.sampling.check_inputs(batch.media.names, self.model)
        require(
            batch.guided or not batch.sampling.guidance_rescale,
            "guidance_rescale",
            batch.sampling.guidance_rescale,
            f"without guidance (guidance_scale={batch.sampling.guidance_scale}) it would do nothing",
            "set it to 0, or guidance_scale above 1",
        )
        self.check_sampling(batch.sampling)


def check_prompts(prompts: list[str]) -> None:
    """Check that there is a prompt and that each is text.

    Raises:
        ValueError: `prompts` is empty, or holds something that is not a string.
    """
    require(len(prompts) > 0, "prompt", prompts, "at least one prompt", "give a text, or a list of texts")
    for prompt in prompts:
        require(isinstance(prompt, str), "prompt", prompt, "text", "give a text, or a list of texts")
