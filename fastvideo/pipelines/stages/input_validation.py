"""The request against the model, before anything is computed."""

from collections.abc import Callable

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.speed import OF_GUIDANCE, SPEED, given
from fastvideo.distributed.layout import Layout
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch, MediaInputs
from fastvideo.pipelines.stages.base import PipelineStage
from fastvideo.utils import require

CheckMedia = Callable[[MediaInputs], None]
"""Raises ValueError when the model cannot be shown these."""
CheckSampling = Callable[[SamplingParam], None]
"""Raises ValueError when the model cannot run these sampling parameters."""


class InputValidationStage(PipelineStage):
    """Refuses a request that the model cannot run; `check_sampling` knows the model's own rules."""

    name = "input_validation"

    def __init__(
        self,
        check_sampling: CheckSampling,
        model: type[SamplingParam] = SamplingParam,
        check_media: CheckMedia = lambda media: None,
    ) -> None:
        """`model`, the class of the model's sampling defaults, says which media and options it takes; `check_media`
        what else holds for the media."""
        self.check_media = check_media
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
        self.check_media(batch.media)
        require(
            batch.guided or not batch.sampling.guidance_rescale,
            "guidance_rescale",
            batch.sampling.guidance_rescale,
            f"without guidance (guidance_scale={batch.sampling.guidance_scale}) it would do nothing",
            "set it to 0, or guidance_scale above 1",
        )
        check_speed_together(batch, self.groups.layout)
        self.check_sampling(batch.sampling)


def check_speed_together(batch: ForwardBatch, layout: Layout) -> None:
    """Check that what trades quality for speed does something, and can be done by the ranks of `layout`.

    Raises:
        ValueError: the field, its value, the rule, and what to do.
    """
    sampling = batch.sampling
    values = sampling.to_dict()
    require(sampling.quality in (None, "exact"), "quality", sampling.quality, "stands for other fields",
            "let a VideoGenerator look them up, or set those")  # fmt: skip
    without_guidance = f"without guidance (guidance_scale={sampling.guidance_scale}) it would do nothing"
    for name in given(sampling, OF_GUIDANCE):
        off = name == "cfg_gate_step" and values[name] == 1
        require(batch.guided or off, name, values[name], without_guidance,
                "leave it out, or set guidance_scale above 1")  # fmt: skip
    missing = sampling.cache == "magcache" and sampling.cache_coefficients is None
    require(not missing, "cache", "magcache", "needs the ratios of this model, which nobody measured",
            "run fastvideo tune MODEL, or give cache_coefficients")  # fmt: skip
    for name in given(sampling, SPEED) if layout.fsdp and layout.cfg > 1 else ():
        require(name in ("cfg_zero_star", "zero_init_steps"), name, values[name],
                "guidance's two predictions gather sharded weights together, so they must run the same blocks",
                "use cfg_size=1, or leave it out")  # fmt: skip


def check_prompts(prompts: list[str]) -> None:
    """Check that there is a prompt and that each is text.

    Raises:
        ValueError: `prompts` is empty, or holds something that is not a string.
    """
    require(len(prompts) > 0, "prompt", prompts, "at least one prompt", "give a text, or a list of texts")
    for prompt in prompts:
        require(isinstance(prompt, str), "prompt", prompt, "text", "give a text, or a list of texts")
