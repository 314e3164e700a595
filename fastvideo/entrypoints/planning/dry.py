"""A pipeline without its weights: on the meta device, where nothing is computed, or with zeros, to be rehearsed.

A video that is made in segments, or chunk by chunk, is made of pieces: one of them is run."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn

from fastvideo.attention.rolling import RollingCache
from fastvideo.configs.models.base import ArchConfig
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import find_component
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.planning.trace import FlashAttention, Trace
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.dits.base import BaseDiT
from fastvideo.models.encoders.base import ImageEncoder, TextEmbeddings, TextEncoder
from fastvideo.models.encoders.image_processor import ImageProcessor
from fastvideo.models.loader.component_loader import arch_of, tiling_of
from fastvideo.models.loader.quantize import quantize_weights, quantized_layers
from fastvideo.models.loader.repo import ComponentSource, Repo
from fastvideo.models.loader.skeleton import skeleton
from fastvideo.models.loader.weights import give_dtypes
from fastvideo.models.schedulers import build_scheduler
from fastvideo.models.vaes.base import BaseVAE, Past
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch, MediaInputs
from fastvideo.pipelines.stages import (
    ConditionStage,
    DecodingStage,
    DenoisingStage,
    ImageEncodingStage,
    InputValidationStage,
    LatentPreparationStage,
    PipelineStage,
    RolloutStage,
    SegmentsStage,
    SteeringStage,
    TextEncodingStage,
    TimestepPreparationStage,
)
from fastvideo.platforms import DTYPES
from fastvideo.utils import require, resolve

PROMPT_TOKENS = 128
"""Of the prompt that is planned for."""
LIGHT = (InputValidationStage, LatentPreparationStage, TimestepPreparationStage)
"""Stages that take next to nothing."""
PLANNED_MEDIA = ("image", "last_image", "video", "mask", "reference_images", "pose_video", "face_video")
"""That a model may be shown, all of which it is planned with; of reference images there is one. What somebody is
replaced in is not among them: it takes the place of a clip that is encoded anyway."""
CLIPS = ("video", "mask", "pose_video", "face_video")
Shape = tuple[int, int, int, int]
"""Channels, frames, height and width of latents."""
Shown = tuple[tuple[int, ...] | None, ...]
"""The shapes of what an image encoder sees, of the latents of media, and of those of a clip that steers."""
CALLS = 4
"""Chunks before the last at which a memory is made, so that so many calls can follow, and leave the oldest out."""


class Pieces(NamedTuple):
    """What a video is made of."""

    sampling: SamplingParam
    """Of one."""
    number: int


class _Tokens:
    """Stands for a tokenizer: every prompt has as many tokens."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, prompts: Sequence[str], **options: Any) -> SimpleNamespace:
        ids = torch.zeros(len(prompts), self.count, dtype=torch.long)
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))


class _Pixels:
    """Stands for an image processor: every image comes out the same."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return torch.zeros(3, *self.size)


def bare(source: ComponentSource, config: PipelineConfig) -> tuple[nn.Module, ArchConfig]:
    """The model of `source` on the meta device with the dtypes that its weights will have, from its config alone."""
    arch = arch_of(source)
    model: nn.Module = skeleton(lambda: resolve(find_component(source.class_name).model)(arch))
    give_dtypes(model, DTYPES[config.precision_of(source.name)], arch.keep_fp32)
    return model.eval().requires_grad_(False), arch


class DryPipeline:
    """The stages of a model's pipeline that compute, each to be run by itself."""

    def __init__(
        self,
        repo: Repo,
        config: PipelineConfig,
        *,
        zeros: bool = False,
        layers: int | None = None,
        quantized: Mapping[str, str] | None = None,
    ) -> None:
        """With `zeros` the models have weights, all zero, those of the components in `quantized` by the method there;
        with `layers` transformers and text encoders no more layers.

        Raises:
            ValueError: the model has stages that cannot be run so.
        """
        self.zeros = zeros
        components: dict[str, Any] = {}
        for source in repo.components.values():
            if source.has_weights:
                model, arch = bare(source, config)
                if isinstance(model, TextEncoder):
                    model.text_len = config.text_len
                    model.tokenizer = _Tokens(min(PROMPT_TOKENS, config.text_len - 1))
                if isinstance(model, ImageEncoder):
                    processor = ImageProcessor.from_dict(repo.components["image_processor"].config)
                    model.processor = _Pixels(processor.crop)  # type: ignore[assignment]
                if isinstance(model, BaseVAE) and config.vae_tiling:
                    model.cut(tiling_of(arch, config))
                if layers is not None and isinstance(model, BaseDiT | TextEncoder):
                    model.blocks = model.blocks[:layers]
                if zeros:
                    _fill(model)
                    if quantized and source.name in quantized:
                        finish = quantize_weights(model, arch, quantized[source.name])
                        for name in quantized_layers(model, arch):
                            finish(name)
                components[source.name] = model
            elif source.name.startswith("scheduler"):
                components[source.name] = build_scheduler(source.class_name, source.config, config.flow_shift)
        args = FastVideoArgs(model=repo.model)
        pipeline: type[ComposedPipelineBase] = resolve(repo.entry.pipeline)
        stages = pipeline(components, args, config, options=repo.model_index).stages
        archs = [arch_of(one) for one in repo.components.values() if one.has_weights]
        self.vae_scale = next((arch.latent_scale for arch in archs if arch.latent_scale is not None), None)
        self.face_side = next((arch.face_side for arch in archs if arch.face_side is not None), None)
        self.names = {model: name for name, model in components.items() if isinstance(model, nn.Module)}
        self._sort(repo, stages)
        asked = next(stage.model for stage in stages if isinstance(stage, InputValidationStage))
        shown = "condition" in self.denoising.reads or (self.rollout is not None and self.rollout.first > 0)
        self.media = tuple(name for name in PLANNED_MEDIA if shown and name in (*asked.needs, *asked.takes))
        """What the model is shown beside the prompt."""

    def _sort(self, repo: Repo, stages: Sequence[PipelineStage]) -> None:
        """Find the stages that compute; raises a `ValueError` for one that cannot be run so."""
        self.image_stage: ImageEncodingStage | None = None
        self.media_stage: ConditionStage | None = None
        self.steering_stage: SteeringStage | None = None
        self.segments: SegmentsStage | None = None
        self.rollout: RolloutStage | None = None
        self.preparation: LatentPreparationStage | None = None
        self.denoising: DenoisingStage | RolloutStage
        self.decoding: DecodingStage | RolloutStage
        for stage in stages:
            if isinstance(stage, SegmentsStage):
                self.segments = stage
        for stage in (*stages, *(() if self.segments is None else self.segments.stages)):
            if isinstance(stage, TextEncodingStage):
                self.text_stage = stage
            elif isinstance(stage, ImageEncodingStage):
                self.image_stage = stage
            elif isinstance(stage, ConditionStage):
                self.media_stage = stage
            elif isinstance(stage, SteeringStage):
                self.steering_stage = stage
            elif isinstance(stage, RolloutStage):
                self.rollout = self.denoising = self.decoding = stage
            elif isinstance(stage, DenoisingStage):
                self.denoising = stage
            elif isinstance(stage, DecodingStage):
                self.decoding = stage
            elif isinstance(stage, LatentPreparationStage):
                self.preparation = stage
            elif not isinstance(stage, SegmentsStage):
                rule = f"its stage {stage.name!r} cannot be predicted yet"
                require(isinstance(stage, LIGHT), "model", repo.model, rule, "plan another model, or leave memory out")

    @property
    def vae(self) -> BaseVAE:
        """Its decoder."""
        assert isinstance(self.decoding.vae, BaseVAE)
        return self.decoding.vae

    def pieces(self, sampling: SamplingParam) -> Pieces:
        """What a video of `sampling` is made of."""
        if self.segments is not None:
            length, overlap = self.segments.cut(sampling)
            count = max(1, -(-(sampling.num_frames - overlap) // (length - overlap)))
            return Pieces(replace(sampling, num_frames=length), count)
        if self.rollout is not None:
            frames = self.rollout.latent_shape(sampling)[1]
            return Pieces(sampling, (frames - self.rollout.first) // self.rollout.chunk)
        return Pieces(sampling, 1)

    def picked(self, sampling: SamplingParam) -> tuple[torch.Tensor, list[Any]]:
        """The timesteps, and the model that runs at each."""
        scheduler, steps = self.denoising.scheduler, sampling.num_inference_steps
        scheduler.set_timesteps(steps)
        if isinstance(self.denoising, RolloutStage):
            return scheduler.timesteps, [self.denoising.model] * len(scheduler.timesteps)
        return scheduler.timesteps, [self.denoising.pick(t) for t in scheduler.timesteps]

    @contextmanager
    def counted(self) -> Iterator[Trace]:
        """Counts what the block would compute, where nothing is."""
        trace = Trace()
        with torch.no_grad():
            if self.zeros:
                yield trace
            else:
                with FlashAttention(trace), torch.device("meta"), trace:
                    yield trace

    def embed(self, prompts: int) -> TextEmbeddings:
        """The embeddings of `prompts` prompts."""
        return self.text_stage.encoder(["prompt"] * prompts)

    def request(self, sampling: SamplingParam) -> ForwardBatch:
        """A request for a video of `sampling`, with grey media; a face is as large as the model looks at it."""
        media: dict[str, Any] = {}
        for name in self.media:
            frames = (sampling.num_frames,) if name in CLIPS else ()
            media[name] = _grey(*frames, sampling.height, sampling.width)
        if "reference_images" in media:
            media["reference_images"] = (media["reference_images"],)
        if "face_video" in media:
            media["face_video"] = self.face(sampling.num_frames)
        return ForwardBatch(prompts=["prompt"], negative_prompts=[""], sampling=sampling, media=MediaInputs(**media))

    def face(self, frames: int) -> torch.Tensor:
        """A grey clip of a face."""
        assert self.face_side is not None
        return _grey(frames, self.face_side, self.face_side)

    def latent_shape(self, sampling: SamplingParam) -> Shape:
        """Of a whole video of `sampling`, or of one of its segments."""
        stage = self.preparation or self.rollout
        assert stage is not None
        return stage.latent_shape(sampling)

    def latents_of(self, sampling: SamplingParam) -> Shape:
        """The shape that is denoised at once."""
        c, t, h, w = self.latent_shape(sampling)
        if self.rollout is not None:
            return c, self.rollout.chunk, h, w
        assert self.preparation is not None
        with torch.device("meta"):
            return c, t + self.preparation.more_frames(self.request(sampling)), h, w

    def sampling_of(self, sampling: SamplingParam, shape: Shape) -> SamplingParam:
        """`sampling` at the size whose video has latents of `shape`."""
        assert self.vae_scale is not None
        time, space = self.vae_scale
        _, t, h, w = shape
        return replace(sampling, num_frames=(t - 1) * time + 1, height=h * space, width=w * space)

    def see(self, sampling: SamplingParam) -> torch.Tensor | None:
        """What an image encoder sees in the media of a video of `sampling`."""
        assert self.image_stage is not None
        images = self.image_stage.shown(self.request(sampling))
        return self.image_stage.encoder(images).flatten(0, 1).unsqueeze(0)

    def condition(self, sampling: SamplingParam) -> tuple[torch.Tensor | None, ...]:
        """The latents of the media of a video of `sampling`, and those of a clip that steers."""
        device, request = torch.device("cpu" if self.zeros else "meta"), self.request(sampling)
        if self.rollout is not None:
            return self.rollout.given(request, device), None
        assert self.media_stage is not None
        made = self.media_stage.make(request, device)
        return made, None if self.steering_stage is None else self.steering_stage.make(request, device)

    def shown(self, sampling: SamplingParam) -> Shown:
        """The shapes of what a model is shown; where there is no such stage, or no media, None."""
        with torch.no_grad(), torch.device("meta"):
            assert not self.zeros
            seen = None if self.image_stage is None else self.see(sampling)
            beside = self.media and self.rollout is None
            latents = self.condition(sampling) if beside else (None, None)
        return tuple(None if one is None else tuple(one.shape) for one in (seen, *latents))

    def memory(self, model: Any, t: float, shape: Shape, text: TextEmbeddings, frames: int) -> RollingCache | None:
        """What a model that makes latents of `shape` at a time sees of earlier ones near the end of a video of so many
        latent `frames`; None for one that makes all of them at once."""
        if self.rollout is None:
            return None
        memory = self.rollout.new_memory((frames, *shape[2:]))
        self.predict(model, t, shape, text, memory=memory)
        # its places need not be filled: the layers of this pass have made them; no more than there are
        memory.keep(max(0, min(memory.window - shape[1], (frames // shape[1] - CALLS) * shape[1])))
        return memory

    def predict(
        self,
        model: Any,
        t: float,
        shape: Shape,
        text: TextEmbeddings,
        shown: Shown = (None, None, None),
        memory: RollingCache | None = None,
        times: int = 1,
    ) -> None:
        """So many predictions of `model` for latents [1, *shape], with what it is shown of these shapes, or after what
        `memory` holds, where the next call goes on."""
        one = TextEmbeddings(text.states[:1], text.mask[:1], text.padding)
        latents, timestep = torch.zeros(1, *shape), torch.full((), t)
        if isinstance(self.denoising, RolloutStage):
            memory = memory or self.denoising.new_memory((shape[1], *shape[2:]))
            for _ in range(times):
                model(latents, timestep.expand(1), memory=memory, **self.denoising.conditions(one))
            memory.keep(shape[1])
            return
        batch = ForwardBatch(prompts=["prompt"], negative_prompts=[""], sampling=SamplingParam())
        ones = (None if size is None else torch.ones(size) for size in shown)
        batch.image_embeds, batch.condition, batch.steering = ones
        if self.face_side is not None and self.vae_scale is not None and batch.steering is not None:
            batch.media = MediaInputs(face_video=self.face((batch.steering.shape[2] - 1) * self.vae_scale[0] + 1))
        extras = self.denoising.extras(batch)
        for _ in range(times):
            given, timestep = self.denoising.prepare(latents, torch.full((), t), batch)
            model(given, timestep, **self.denoising.conditions(one), **extras)

    def decode(self, shape: Shape) -> int:
        """The video of latents [1, *shape], part by part, of which none is kept; never in tiles. Bytes that are kept
        for what follows."""
        if self.rollout is not None:
            past = Past()
            for _ in range(2):  # the second sees the first
                self.rollout.vae.following(torch.zeros(1, *shape), past)
            return past.nbytes
        assert isinstance(self.decoding, DecodingStage)
        vae = self.vae
        tiling, vae.tiling = vae.tiling, None
        for part in self.decoding.vae.stream(torch.zeros(1, *shape)):
            del part
        vae.tiling = tiling
        return 0


def _grey(*size: int) -> torch.Tensor:
    """Pixels [*size, 3]."""
    return torch.full((*size, 3), 128, dtype=torch.uint8)


def _fill(model: nn.Module) -> None:
    """Zeros for weights: the system gives them memory when they are written, which they are not."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, leaf = name.rpartition(".")
        memory = torch.zeros(tensor.shape, dtype=tensor.dtype)
        value = nn.Parameter(memory, requires_grad=False) if isinstance(tensor, nn.Parameter) else memory
        setattr(model.get_submodule(owner), leaf, value)


def shrunk(shape: Shape, share: float, *, frames: bool, half: bool = False) -> Shape:
    """Latents of about `share` of the positions of `shape`: fewer frames first if `frames`, and then smaller ones. With
    `half`, about half of those, and fewer in any case, so that a line goes through the two; only 4x4 has no half."""
    c, t, h, w = shape
    if share >= 1:
        return shape
    if half:
        whole, part = shrunk(shape, share, frames=frames), shrunk(shape, share / 2, frames=frames)
        if part == whole:  # sides are multiples of 4
            *_, h, w = whole
            part = (*whole[:2], max(4, h - 4), w) if h > w else (*whole[:2], h, max(4, w - 4))
        return part
    if frames and share * t >= 1:
        return c, max(1, round(share * t)), h, w
    side = math.sqrt(share * t if frames else share)
    small = [max(4, min(extent, round(side * extent / 4) * 4)) for extent in (h, w)]
    if small == [4, 4]:
        small = [4, min(w, 8)] if w >= h else [min(h, 8), 4]
    return c, 1 if frames else t, small[0], small[1]
