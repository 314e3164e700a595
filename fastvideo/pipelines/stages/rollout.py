"""Denoising and decoding chunk by chunk, one for all models whose frames depend on no later ones."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch

from fastvideo.attention.rolling import RollingCache
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.layers.residence import Resident
from fastvideo.models.dits.base import BaseDiT
from fastvideo.models.schedulers.flow import RenoisingFlow
from fastvideo.models.vaes.base import Neighbourhood, Past
from fastvideo.pipelines.pipeline_batch_info import BlockRuns, ForwardBatch, Picture, written
from fastvideo.pipelines.stages.base import StreamingStage
from fastvideo.pipelines.stages.decoding import checked_frames
from fastvideo.pipelines.stages.denoising import Conditions, Preview, check_finite, picture_of
from fastvideo.pipelines.stages.latent_preparation import LatentShape
from fastvideo.pipelines.stages.media import MakeCondition
from fastvideo.platforms import current_platform
from fastvideo.platforms.cpu import return_freed_memory

NewMemory = Callable[[tuple[int, int, int]], RollingCache]
"""What a model sees of earlier chunks, empty, for a video whose latents are so many frames, rows and columns."""


def no_frames(batch: ForwardBatch, device: torch.device) -> torch.Tensor | None:
    """Nothing is known."""
    return None


class ChunkDecoder(Resident, Protocol):
    """The part of a VAE that turns latents into the video that follows."""

    def following(self, latents: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        """The video [B, 3, T, H, W] in [-1, 1] of `latents` [B, C, t, h, w], which follow `past`."""


class RolloutStage(StreamingStage):
    """Makes a video chunk by chunk (Self-Forcing, arXiv 2506.08009, algorithm 2).

    Each chunk goes from noise to data in a few steps, at each of which the data is predicted and noised again. It is
    decoded, and then a pass over the clean chunk, at timestep 0, leaves in the model's memory what later chunks see.
    Noise comes from one generator in the order in which it is needed, so a longer video begins as a shorter one.
    """

    name = "denoising"
    reads = ("prompt_embeds",)
    writes = ("video", "block_runs")

    def __init__(
        self,
        scheduler: RenoisingFlow,
        *,
        model: BaseDiT[Any],
        vae: ChunkDecoder,
        conditions: Conditions,
        latent_shape: LatentShape,
        new_memory: NewMemory,
        chunk: int,
        first: int = 0,
        given: MakeCondition = no_frames,
        preview: Preview | None = None,
    ) -> None:
        """The model's `embed` takes `memory`.

        Args:
            scheduler, model, vae, conditions, latent_shape, new_memory, preview: what their types say.
            chunk: latent frames of one, of which a video has a multiple.
            first: latent frames of another chunk before those; 0 where there is none.
            given: latents [1, C, t, h, w] of the first chunks where they are not made but known; None where all are.
        """
        self.first = first
        self.given = given
        self.scheduler = scheduler
        self.model = model
        self.vae = vae
        self.conditions = conditions
        self.latent_shape = latent_shape
        self.new_memory = new_memory
        self.chunk = chunk
        self.preview = preview

    def stream(self, batch: ForwardBatch, args: FastVideoArgs) -> Iterator[torch.Tensor]:
        """See `StreamingStage`.

        Raises:
            Cancelled: before the step at which it was asked for.
            FloatingPointError: the latents or frames are no longer finite; says after which step.
        """
        device = current_platform(args.device).device
        channels, frames, height, width = self.latent_shape(batch.sampling)
        sizes = [self.first] * bool(self.first) + [self.chunk] * ((frames - self.first) // self.chunk)
        known = self.given(batch, device)
        text = self.conditions(written(batch.prompt_embeds, "prompt_embeds"))
        generator = torch.Generator("cpu").manual_seed(batch.sampling.seed)
        past, memory = Past(), self.new_memory((frames, height, width))
        clean: Callable[[], torch.Tensor] | None = None
        latents, passes, size = torch.empty(0), 0, 0

        def noise() -> torch.Tensor:
            shape = (batch.size, channels, size, height, width)
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(device)

        def predict(timestep: torch.Tensor) -> torch.Tensor:
            nonlocal passes
            passes += 1
            prediction: torch.Tensor = self.use(self.model)(latents, timestep.expand(batch.size), memory=memory, **text)
            return prediction

        def draw() -> Picture | None:
            return None if self.preview is None or clean is None else picture_of(self.preview(clean()))

        steps = batch.sampling.num_inference_steps
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        given = 0 if known is None else starts.index(known.shape[2])
        # the last step of each chunk is its decoding
        runs = [range(steps if number < given else 0, steps + 1) for number in range(len(sizes))]
        plan = [(number, step) for number, run in enumerate(runs) for step in run]
        for index, (number, step) in enumerate(batch.control.steps(self.name, plan, len(plan), draw)):
            size = sizes[number]
            if known is not None and number < given:
                latents = known.expand(batch.size, -1, -1, -1, -1)[:, :, starts[number] : starts[number] + size]
            if step == 0:
                self.scheduler.set_timesteps(steps, device)
                latents = noise()
            if step < steps:
                t = self.scheduler.timesteps[step]
                prediction = predict(t)
                clean = partial(self.scheduler.clean, prediction, t, latents)
                latents = self.scheduler.renoise(prediction, latents, None if self.scheduler.last else noise())
                check_finite(latents, index + 1, len(plan))
                continue
            return_freed_memory()  # else what denoising leaves lies beside what decoding needs, and the other way round
            video = checked_frames(self.use(self.vae).following(latents, past), self.groups.control)
            return_freed_memory()
            yield video
            if number + 1 < len(sizes):  # nobody sees the last chunk
                predict(torch.zeros((), device=device))
                memory.keep(size)
        batch.block_runs = BlockRuns(passes * len(self.model.blocks), 0)
