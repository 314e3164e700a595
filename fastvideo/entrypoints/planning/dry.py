"""A pipeline without its weights: on the meta device, where nothing is computed, or with zeros, to be rehearsed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from fastvideo.models.encoders.base import TextEmbeddings, TextEncoder
from fastvideo.models.loader.component_loader import arch_of
from fastvideo.models.loader.quantize import quantize_weights, quantized_layers
from fastvideo.models.loader.repo import ComponentSource, Repo
from fastvideo.models.loader.skeleton import skeleton
from fastvideo.models.loader.weights import give_dtypes
from fastvideo.models.schedulers import build_scheduler
from fastvideo.models.vaes.base import BaseVAE
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.stages import (
    ConditionStage,
    DecodingStage,
    DenoisingStage,
    InputValidationStage,
    LatentPreparationStage,
    TextEncodingStage,
    TimestepPreparationStage,
)
from fastvideo.platforms import DTYPES
from fastvideo.utils import require, resolve

PROMPT_TOKENS = 128
"""Of the prompt that is planned for."""
WITHOUT_MEDIA = (InputValidationStage, LatentPreparationStage, TimestepPreparationStage, ConditionStage)
"""Stages that take next to nothing for a request that is a prompt alone."""
Shape = tuple[int, int, int, int]
"""Channels, frames, height and width of latents."""


class _Tokens:
    """Stands for a tokenizer: every prompt has as many tokens."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, prompts: Sequence[str], **options: Any) -> SimpleNamespace:
        ids = torch.zeros(len(prompts), self.count, dtype=torch.long)
        return SimpleNamespace(input_ids=ids, attention_mask=torch.ones_like(ids))


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
        stages = pipeline(components, args, config).stages
        self.names = {model: name for name, model in components.items() if isinstance(model, nn.Module)}
        for stage in stages:
            if isinstance(stage, TextEncodingStage):
                self.text_stage = stage
            elif isinstance(stage, DenoisingStage):
                self.denoising = stage
            elif isinstance(stage, DecodingStage):
                self.decoding = stage
            else:
                rule = f"its stage {stage.name!r} cannot be predicted yet"
                require(isinstance(stage, WITHOUT_MEDIA), "model", repo.model, rule, "plan a text-to-video model")
        self.scheduler = next(stage.scheduler for stage in stages if isinstance(stage, TimestepPreparationStage))
        self.latent_shape = next(stage.latent_shape for stage in stages if isinstance(stage, LatentPreparationStage))
        images = "condition" in self.denoising.reads
        rule = "takes images, which cannot be planned for yet"
        require(not images, "model", repo.model, rule, "plan a text-to-video model")

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

    def predict(self, model: Any, t: float, shape: Shape, text: TextEmbeddings) -> torch.Tensor:
        """One prediction of `model` for latents [1, *shape]."""
        one = TextEmbeddings(text.states[:1], text.mask[:1], text.padding)
        return model(torch.zeros(1, *shape), torch.full((1,), t), **self.denoising.conditions(one))

    def decode(self, shape: Shape) -> None:
        """The video of latents [1, *shape], part by part, of which none is kept."""
        for part in self.decoding.vae.stream(torch.zeros(1, *shape)):
            del part


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
