"""What every pipeline does: load the components it needs, check that its stages connect, run them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from fastvideo.attention.layer import DistributedAttention
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.sample.alike import alike
from fastvideo.distributed.groups import ONE_RANK, Groups
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import init_logger
from fastvideo.models.loader.adapt import Adapted
from fastvideo.models.loader.component_loader import bare_components, load_components
from fastvideo.models.loader.lora import LoraSet
from fastvideo.models.loader.repo import Repo
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.pipelines.stages.base import PipelineStage, StreamingStage, check_connected
from fastvideo.pipelines.stages.denoising import DenoisingStage
from fastvideo.pipelines.stages.together import OWN_FAULTS, Crowd, Knowledge, Member
from fastvideo.platforms import current_platform
from fastvideo.platforms.cpu import return_freed_memory

T = TypeVar("T")
Ended = Callable[[int, ForwardBatch | Exception], None]
"""Told the number of a request and what became of it."""
logger = init_logger(__name__)


class ComposedPipelineBase(ABC):
    """A pipeline: components, and stages in order. A subclass names the first and lists the second."""

    _required_config_modules: ClassVar[tuple[str, ...]]
    """The components needed, by their names in `model_index.json`."""
    _config_options: ClassVar[tuple[str, ...]] = ()
    """What else in `model_index.json` the pipeline heeds; a repo that asks for more is refused."""

    def __init__(
        self,
        components: Mapping[str, object],
        args: FastVideoArgs,
        pipeline_config: PipelineConfig,
        groups: Groups = ONE_RANK,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Put the stages together around loaded `components`, which are spread over `groups`.

        `options` are those in `_config_options` that `model_index.json` has.

        Raises:
            ValueError: the stages do not connect.
            TypeError: a component is not of the kind that a stage needs.
        """
        self.components = components
        self.args = args
        self.pipeline_config = pipeline_config
        self.options = options
        self.stages = self.create_stages()
        self._adapted: Adapted | None = None
        self._knowledge = Knowledge()
        check_connected(self.stages)
        for stage in self.stages:
            stage.groups = groups

    @classmethod
    def from_repo(
        cls: "type[Pipeline]",
        repo: Repo,
        args: FastVideoArgs,
        pipeline_config: PipelineConfig,
        groups: Groups = ONE_RANK,
        progress: bool = True,
    ) -> "Pipeline":
        """The pipeline with the weights of `repo`, or on several ranks this rank's part of it.

        `progress` shows a bar of the bytes read, if standard error is a terminal.

        Raises:
            ValueError: a component is missing from the repo's index, or its class is not registered, or a weight is
                missing, unexpected or misshapen. No weight has been read then.
        """
        components = load_components(
            repo, cls._required_config_modules, args, pipeline_config, options=cls._config_options,
            groups=groups, progress=progress,
        )  # fmt: skip
        pipeline = cls(components, args, pipeline_config, groups, cls._heeded(repo))
        pipeline._adapted = Adapted(repo, components, groups, current_platform(args.device).device)
        return pipeline

    @classmethod
    def without_weights(
        cls: "type[Pipeline]", repo: Repo, args: FastVideoArgs, pipeline_config: PipelineConfig
    ) -> "Pipeline":
        """The pipeline of `repo` whose models lie on the meta device: it can `check` requests, and not run them.

        Raises:
            ValueError: as `from_repo`.
        """
        components = bare_components(repo, cls._required_config_modules, pipeline_config)
        return cls(components, args, pipeline_config, options=cls._heeded(repo))

    @classmethod
    def _heeded(cls, repo: Repo) -> dict[str, Any]:
        return {name: value for name, value in repo.model_index.items() if name in cls._config_options}

    @abstractmethod
    def create_stages(self) -> tuple[PipelineStage, ...]:
        """The stages in order."""

    def component(self, name: str, kind: type[T]) -> T:
        """The component `name`, which must be a `kind`.

        Raises:
            TypeError: it is something else.
        """
        found = self.components[name]
        if not isinstance(found, kind):
            raise TypeError(
                f"component {name!r} is a {type(found).__name__}: {type(self).__name__} needs a {kind.__name__}"
            )
        return found

    @property
    def attention_backend(self) -> str:
        """The name of the backend of the components' full-sequence attention; "none" when they have no such layer."""
        models = [component for component in self.components.values() if isinstance(component, nn.Module)]
        layers = (module for model in models for module in model.modules() if isinstance(module, DistributedAttention))
        names = {layer.backend.name for layer in layers}
        return "+".join(sorted(names)) or "none"

    def adapt(self, loras: LoraSet) -> None:
        """Run with `loras` from now on, and with no others. After an error all is as it was before.

        Raises:
            ValueError: a file of theirs, or of the model, is not what it was when they were compared.
            RuntimeError: the pipeline was made of components alone.
        """
        if self._adapted is None:
            raise RuntimeError("a LoRA needs the model's files: make the pipeline with from_repo")
        self._adapted.adapt(loras)
        self._knowledge = Knowledge()  # layers may have branches now
        if self.args.enable_torch_compile:
            torch.compiler.reset()  # compiled code takes no notice of branches that came or went

    def check(self, batch: ForwardBatch) -> None:
        """Refuse a request that `forward` would refuse before it computes anything; any thread may call it.

        Raises:
            ValueError: the field, its value, the rule, and what to do.
        """
        for stage in self.stages:
            stage.check(batch)

    @torch.no_grad()
    def forward(self, batch: ForwardBatch) -> ForwardBatch:
        """Run `batch` through all stages.

        Raises:
            Cancelled: the batch's token was cancelled.
            ValueError: the model cannot run this request; nothing has been computed.
            FloatingPointError: the latents or the video are not finite.
        """
        return self._through(self.stages, batch)

    @torch.no_grad()
    def forward_together(self, batches: Sequence[ForwardBatch], ended: Ended) -> None:
        """Run `batches`, which are `alike`, to the same results as `forward`, and denoise them together where that
        changes no bit of one and takes less time; see `stages/together.py`. Each has its own progress and can be
        cancelled; one that is, or whose numbers are not finite, ends by itself. From the decoding on they go one after
        the other.

        Args:
            batches: one or more.
            ended: called with the number of one of them and with what became of it, a batch or what it raised, as soon
                as that is so.

        Raises:
            ValueError: they are not alike.
            Exception: what else `forward` raises for one of them; those that have not ended by then have no result.
        """
        keys = {alike(batch.sampling.to_dict(), batch.media.names) for batch in batches}
        if len(keys) > 1 or None in keys:
            raise ValueError("requests that run together must be alike: of one size, with as many steps, no step cache")
        place = self._denoising
        if place is None or len(batches) == 1:
            for number, batch in enumerate(batches):
                _settle(number, partial(self.forward, batch), ended)
            return
        stage = self.stages[place]
        assert isinstance(stage, DenoisingStage)
        members: dict[int, Member] = {}
        for number, batch in enumerate(batches):
            begun = _settle(number, partial(self._through, self.stages[:place], batch), lambda *outcome: None)
            if isinstance(begun, Exception):
                ended(number, begun)
            else:
                members[number] = Member(stage, begun)
        crowd = Crowd(list(members.values()), current_platform(self.args.device), self._knowledge)
        with self._leaving(stage):
            crowd.run()
        for number, member in members.items():
            member.batch.peak_memory = crowd.peak
            _settle(number, partial(self._finished, stage, member, place), ended)

    @property
    def _denoising(self) -> int | None:
        """The number of the stage in which requests can run together; None where there is none, or several ranks."""
        places = [number for number, stage in enumerate(self.stages) if isinstance(stage, DenoisingStage)]
        return places[0] if len(places) == 1 and self.stages[0].groups.layout.world == 1 else None

    def _through(self, stages: Sequence[PipelineStage], batch: ForwardBatch) -> ForwardBatch:
        for stage in stages:
            batch = self._run(stage, batch)
        return batch

    def _finished(self, denoising: DenoisingStage, member: Member, place: int) -> ForwardBatch:
        """The batch of `member`, once it went through `denoising`, which is stage number `place`, and those behind."""
        with self._leaving(denoising):
            member.finish()
        return self._through(self.stages[place + 1 :], member.batch)

    @torch.no_grad()
    def stream(self, batch: ForwardBatch) -> Iterator[torch.Tensor]:
        """The video of `batch` [B, 3, T, H, W] fp32 in [0, 1] on the CPU, in order along T, each chunk as soon as it is
        there; the next one is computed when it is asked for.

        Raises:
            ValueError: the model makes all frames at once; or as `forward`, as is what else is raised.
        """
        *before, last = self.stages
        if not isinstance(last, StreamingStage):
            raise ValueError(f"stream: {type(self).__name__} makes all frames at once; use generate_video")
        for stage in before:
            batch = self._run(stage, batch)
        try:
            yield from last.stream(batch, self.args)
        finally:
            last.release()

    def _run(self, stage: PipelineStage, batch: ForwardBatch) -> ForwardBatch:
        """`batch` after `stage`."""
        batch.control.check()
        started = time.perf_counter()
        with self._leaving(stage):
            batch = stage.forward(batch, self.args)
        batch.stage_times[stage.name] = time.perf_counter() - started
        logger.debug("%s: %.3f s", stage.name, batch.stage_times[stage.name])
        return batch

    @contextmanager
    def _leaving(self, stage: PipelineStage) -> Iterator[None]:
        """Have `stage` let go of what it uses at the end of the block."""
        try:
            yield
        finally:
            stage.release()
            return_freed_memory()  # else what one stage leaves lies beside what the next one needs


def _settle(number: int, make: Callable[[], ForwardBatch], ended: Ended) -> ForwardBatch | Exception:
    """What `make` gives for request `number`, or what ended that one alone; `ended` is told."""
    try:
        outcome: ForwardBatch | Exception = make()
    except OWN_FAULTS as error:
        outcome = error
    ended(number, outcome)
    return outcome


Pipeline = TypeVar("Pipeline", bound=ComposedPipelineBase)
