"""The denoising loop, one for all models."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.dits.base import BaseDiT
from fastvideo.models.encoders.base import TextEmbeddings
from fastvideo.models.schedulers import Scheduler
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch, Picture, written
from fastvideo.pipelines.stages.base import PipelineStage
from fastvideo.pipelines.stages.prediction import Asking, At, Guide, Predictor, alone, same_guidance

Pick = Callable[[torch.Tensor], BaseDiT[Any]]
"""The model for a timestep (a scalar tensor on the scheduler's scale)."""
Conditions = Callable[[TextEmbeddings], dict[str, Any]]
"""The keywords of the model's `embed` for embedded prompts."""
Preview = Callable[[torch.Tensor], torch.Tensor]
"""Of latents [B, C, t, h, w] a frame [B, 3, H, W] in [-1, 1], at a small part of a step's cost, on this rank alone."""

PREVIEW_SIDE = 256
"""The most pixels of a preview's side."""

Prepare = Callable[[torch.Tensor, torch.Tensor, ForwardBatch], tuple[torch.Tensor, torch.Tensor]]
"""What the model is given at a timestep (a scalar) for the latents [B, C, t, h, w]: its input, and its timestep."""
Extras = Callable[[ForwardBatch], dict[str, Any]]
"""More keywords of the model's `embed`, the same at every step."""
Advance = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, ForwardBatch], torch.Tensor]
"""The latents after a step, from the prediction, the timestep and the latents before it."""
Finish = Callable[[torch.Tensor, ForwardBatch], torch.Tensor]
"""The latents of the result from those after the last step."""


def plain_input(
    latents: torch.Tensor, timestep: torch.Tensor, batch: ForwardBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """The latents alone, all at one timestep."""
    return latents, timestep.expand(latents.shape[0])


def nothing_more(batch: ForwardBatch) -> dict[str, Any]:
    """No keywords."""
    return {}


def as_they_are(latents: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
    """The latents after the last step."""
    return latents


class DenoisingStage(PipelineStage):
    """Takes the latents from noise to data. What a family does differently is in the functions it is given.

    The latents stay in fp32 between steps; each model takes them in its own dtype.
    """

    name = "denoising"
    reads: tuple[str, ...] = ("prompt_embeds", "negative_prompt_embeds", "timesteps", "latents")
    writes = ("latents", "block_runs")

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        pick: Pick,
        conditions: Conditions,
        guide: Guide = same_guidance,
        preview: Preview | None = None,
        prepare: Prepare = plain_input,
        extras: Extras = nothing_more,
        negative_extras: Extras | None = None,
        advance: Advance | None = None,
        finish: Finish = as_they_are,
        uses: tuple[str, ...] = (),
    ) -> None:
        """`extras` go with the prompt, and without it `negative_extras`, or when None the same; `advance` is the
        scheduler's step when None; `uses` are the fields of the batch that the functions read beside those that the
        stage reads."""
        if advance is None and scheduler.renoises:
            raise ValueError(
                f"scheduler {scheduler.name}: this pipeline has no noise for its steps; use one for models of few steps"
            )
        self.scheduler = scheduler
        self.pick = pick
        self.conditions = conditions
        self.guide = guide
        self.preview = preview
        self.prepare = prepare
        self.extras = extras
        self.negative_extras = negative_extras
        self.advance = advance or self.step
        self.finish = finish
        self.reads = (*type(self).reads, *uses)

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        """Run every timestep.

        Raises:
            Cancelled: before the step at which it was asked for.
            FloatingPointError: the latents are no longer finite; says after which step.
        """
        return alone(self.asking(batch))

    def asking(self, batch: ForwardBatch) -> Asking[ForwardBatch]:
        """Asks for the passes of every timestep, and gives what `forward` does."""
        latents = written(batch.latents, "latents")
        timesteps = written(batch.timesteps, "timesteps")
        extras = self.extras(batch)
        text = self.conditions(written(batch.prompt_embeds, "prompt_embeds")) | extras
        negative = None
        if batch.guided:
            without = extras if self.negative_extras is None else self.negative_extras(batch)
            negative = self.conditions(written(batch.negative_prompt_embeds, "negative_prompt_embeds")) | without
        total = len(timesteps)
        predict = Predictor(batch.sampling, total, guide=self.guide, cfg=self.groups.cfg)
        clean: Callable[[], torch.Tensor] | None = None

        def draw() -> Picture | None:
            # the other ranks have the same latents, and wait for this one at their next exchange
            if self.preview is None or clean is None or self.groups.rank > 0:
                return None
            return picture_of(self.preview(self.finish(clean(), batch)))

        for step, t in batch.control.steps(self.name, enumerate(timesteps, start=1), total, draw):
            model = self.use(self.pick(t))
            given, timestep = self.prepare(latents, t, batch)
            prediction = yield from predict(model, At(step - 1, t, latents), given, timestep, text, negative)
            if batch.control.preview_every:
                clean = partial(self.scheduler.clean, prediction, t, latents)
            latents = self.advance(prediction, t, latents, batch)
            check_finite(latents, step, total)
        batch.latents, batch.block_runs = self.finish(latents, batch), predict.block_runs(latents.device)
        return batch

    def step(
        self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor, batch: ForwardBatch
    ) -> torch.Tensor:
        """The scheduler's step."""
        return self.scheduler.step(prediction, timestep, latents)


def picture_of(frames: torch.Tensor) -> Picture:
    """The first of `frames` [B, 3, H, W] in [-1, 1] as 8-bit RGB [h, w, 3], no side longer than PREVIEW_SIDE."""
    frame = frames[:1].float()
    scale = PREVIEW_SIDE / max(frame.shape[2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in frame.shape[2:]]
        frame = F.interpolate(frame, size, mode="area")
    picture: Picture = (
        ((frame[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    )
    return picture


def check_finite(latents: torch.Tensor, step: int, total: int) -> None:
    """Check that no latent is NaN or infinite.

    Raises:
        FloatingPointError: one is; names the step and what to try.
    """
    if not torch.isfinite(latents).all():
        raise FloatingPointError(
            f"NaN or infinity in the latents after step {step} of {total}: the weights or the precision do not hold; "
            "try precision='fp32', and check the weights"
        )
