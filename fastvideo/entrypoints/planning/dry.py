"""A pipeline without its weights: on the meta device, where nothing is computed, or with zeros, to be rehearsed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

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
from fastvideo.models.vaes.base import BaseVAE
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
    TextEncodingStage,
    TimestepPreparationStage,
)
from fastvideo.platforms import DTYPES
from fastvideo.utils import require, resolve

PROMPT_TOKENS = 128
"""Of the prompt that is planned for."""
LIGHT = (InputValidationStage, LatentPreparationStage, TimestepPreparationStage)
"""Stages that take next to nothing."""
PLANNED_MEDIA = ("image", "last_image", "video", "mask", "reference_images")
"""That a model may be shown, all of which it is planned with; of the last there is one."""
Shape = tuple[int, int, int, int]
"""Channels, frames, height and width of latents."""
Shown = tuple[tuple[int, ...] | None, ...]
"""The shapes of what an image encoder sees, and of the latents of media."""


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
        rule = "makes its video chunk by chunk, which cannot be planned yet"
        require(not repo.entry.streams, "model", repo.model, rule, "plan another model, or leave memory out")
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
        self.vae_scale = next(
            (arch_of(one).latent_scale for one in repo.components.values() if one.name == "vae"), None
        )
        self.names = {model: name for name, model in components.items() if isinstance(model, nn.Module)}
        self._sort(repo, stages)
        self.scheduler = next(stage.scheduler for stage in stages if isinstance(stage, TimestepPreparationStage))
        self.preparation = next(stage for stage in stages if isinstance(stage, LatentPreparationStage))
        asked = next(stage.model for stage in stages if isinstance(stage, InputValidationStage))
        shown = "condition" in self.denoising.reads
        self.media = tuple(name for name in PLANNED_MEDIA if shown and name in (*asked.needs, *asked.takes))
        """What the model is shown beside the prompt."""

    def _sort(self, repo: Repo, stages: Sequence[PipelineStage]) -> None:
        """Find the stages that compute; raises a `ValueError` for one that cannot be run so."""
        self.image_stage: ImageEncodingStage | None = None
        self.media_stage: ConditionStage | None = None
        for stage in stages:
            if isinstance(stage, TextEncodingStage):
                self.text_stage = stage
            elif isinstance(stage, ImageEncodingStage):
                self.image_stage = stage
            elif isinstance(stage, ConditionStage):
                self.media_stage = stage
            elif isinstance(stage, DenoisingStage):
                self.denoising = stage
            elif isinstance(stage, DecodingStage):
                self.decoding = stage
            else:
                rule = f"its stage {stage.name!r} cannot be predicted yet"
                require(isinstance(stage, LIGHT), "model", repo.model, rule, "plan another model, or leave memory out")

    @property
    def vae(self) -> BaseVAE:
        """Its decoder."""
        assert isinstance(self.decoding.vae, BaseVAE)
        return self.decoding.vae

    def picked(self, sampling: SamplingParam) -> tuple[torch.Tensor, list[Any]]:
        """The timesteps, and the model that runs at each."""
        self.scheduler.set_timesteps(sampling.num_inference_steps)
        return self.scheduler.timesteps, [self.denoising.pick(t) for t in self.scheduler.timesteps]

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
        """A request for a video of `sampling`, with grey media."""
        size = (sampling.height, sampling.width, 3)
        media: dict[str, Any] = {}
        for name in self.media:
            frames = (sampling.num_frames,) if name in ("video", "mask") else ()
            media[name] = torch.full((*frames, *size), 128, dtype=torch.uint8)
        if "reference_images" in media:
            media["reference_images"] = (media["reference_images"],)
        return ForwardBatch(prompts=["prompt"], negative_prompts=[""], sampling=sampling, media=MediaInputs(**media))

    def latents_of(self, sampling: SamplingParam) -> Shape:
        """The shape that is denoised."""
        c, t, h, w = self.preparation.latent_shape(sampling)
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

    def condition(self, sampling: SamplingParam) -> torch.Tensor | None:
        """The latents of the media of a video of `sampling`."""
        assert self.media_stage is not None
        return self.media_stage.make(self.request(sampling), torch.device("cpu" if self.zeros else "meta"))

    def shown(self, sampling: SamplingParam) -> Shown:
        """The shapes of both; where there is no such stage, or no media, None."""
        with torch.no_grad(), torch.device("meta"):
            assert not self.zeros
            seen = None if self.image_stage is None else self.see(sampling)
            latents = self.condition(sampling) if self.media else None
        return tuple(None if one is None else tuple(one.shape) for one in (seen, latents))

    def predict(
        self, model: Any, t: float, shape: Shape, text: TextEmbeddings, shown: Shown = (None, None)
    ) -> torch.Tensor:
        """One prediction of `model` for latents [1, *shape], with what it is shown of these shapes."""
        one = TextEmbeddings(text.states[:1], text.mask[:1], text.padding)
        batch = ForwardBatch(prompts=["prompt"], negative_prompts=[""], sampling=SamplingParam())
        batch.image_embeds, batch.condition = (None if size is None else torch.ones(size) for size in shown)
        given, timestep = self.denoising.prepare(torch.zeros(1, *shape), torch.full((), t), batch)
        return model(given, timestep, **self.denoising.conditions(one), **self.denoising.extras(batch))

    def decode(self, shape: Shape) -> None:
        """The video of latents [1, *shape], part by part, of which none is kept; never in tiles."""
        vae = self.vae
        tiling, vae.tiling = vae.tiling, None
        for part in self.decoding.vae.stream(torch.zeros(1, *shape)):
            del part
        vae.tiling = tiling


def _fill(model: nn.Module) -> None:
    """Zeros for weights: the system gives them memory when they are written, which they are not."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, leaf = name.rpartition(".")
        memory = torch.zeros(tensor.shape, dtype=tensor.dtype)
        value = nn.Parameter(memory, requires_grad=False) if isinstance(tensor, nn.Parameter) else memory
        setattr(model.get_submodule(owner), leaf, value)


def shrunk(shape: Shape, share: float, *, frames: bool) -> Shape:
    """Latents of about `share` of the positions of `shape`: fewer frames first if `frames`, and then smaller ones."""
    c, t, h, w = shape
    if share >= 1:
        return shape
    if frames and share * t >= 1:
        return c, max(1, round(share * t)), h, w
    left = share * t if frames else share
    side = math.sqrt(left)
    small = [max(4, min(extent, round(side * extent / 4) * 4)) for extent in (h, w)]
    return c, 1 if frames else t, small[0], small[1]
