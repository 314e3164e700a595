"""The diffusion transformer that every family fills in: embed, scatter, blocks, project, gather, unpatchify."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import nn

from fastvideo.attention.layer import DistributedAttention
from fastvideo.layers.residence import OnDevice, Residence
from fastvideo.models.dits.step_cache import StepCache


class RunsAlone(Exception):  # noqa: N818 - an answer
    """Some passes cannot be run together."""


@dataclass(frozen=True)
class BlockContext:
    """What the blocks need beside the tokens; nothing here changes from block to block."""

    along_sequence: ClassVar[Mapping[str, int]] = {}
    """Fields that go along the sequence, tensors or tuples of them, and the dimension that does."""
    by_prompt: ClassVar[Mapping[str, int]] = {}
    """Fields as long as the prompt, tensors or None, and the dimension that is: compiled blocks take any length."""
    by_clip: ClassVar[tuple[str, ...] | None] = None
    """Fields with the clips in dimension 0, where blocks can run the clips of several contexts at once: those fields
    are then one tensor, `clips` are the contexts, and all else is as of the first. None where they cannot."""

    grid: tuple[int, int, int] = field(kw_only=True)
    """Tokens in time, height and width; the sequence is the whole of it, width fastest."""
    clips: tuple["BlockContext", ...] = field(default=(), kw_only=True)
    """Of several passes that run at once, the context of each, for what is not of one length, such as text."""

    def joined(self, others: Sequence["BlockContext"]) -> "BlockContext":
        """The context in which the clips of this one and of `others` run at once.

        Raises:
            RunsAlone: they cannot.
        """
        names, clips = self.by_clip, (self, *others)
        if names is None or any(type(other) is not type(self) or other.grid != self.grid for other in others):
            raise RunsAlone(f"the blocks of a {type(self).__name__} run one pass at a time")
        fields: dict[str, Any] = {name: torch.cat([getattr(clip, name) for clip in clips]) for name in names}
        return dataclasses.replace(self, **fields, clips=clips)


Context = TypeVar("Context", bound=BlockContext)


class Given(NamedTuple):
    """What one pass of a model is given."""

    latents: torch.Tensor
    """[B, C, T, H, W]."""
    timestep: torch.Tensor
    """[B], or as `embed` takes it."""
    conditions: Mapping[str, Any]
    """The keywords of `embed`."""


class SequenceSharding(Protocol):
    """How a token sequence is spread over ranks."""

    def scatter(
        self, tokens: torch.Tensor, along: Mapping[str, tuple[Any, int]]
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """This rank's part of `tokens` [B, L, d] and of each value in `along`, given with its sequence dimension."""

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """The whole of `tokens` again, on every rank."""

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sums [n] of `values` [n, B, part of L], a number for each token here, over the whole sequence."""


class WholeSequence:
    """The sharding over one rank: the identity."""

    def scatter(
        self, tokens: torch.Tensor, along: Mapping[str, tuple[Any, int]]
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        return tokens, {}

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values.sum(dim=(1, 2))


def alone(value: torch.Tensor) -> torch.Tensor:
    """What one rank agrees on: its own value."""
    return value


class BaseDiT(nn.Module, ABC, Generic[Context]):
    """A diffusion transformer. A family writes `embed`, its block, `project` and `unpatchify`; `forward` is this one
    for all."""

    timestep_input: ClassVar[str]
    """The field of its context that says of the timestep what the blocks get: what TeaCache compares."""

    blocks: nn.ModuleList
    residence: Residence = OnDevice()
    """Where the weights are while nobody uses the model; set by the loader."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence: SequenceSharding = WholeSequence()
        self.compiled = False
        self.agree: Callable[[torch.Tensor], torch.Tensor] = alone
        """Gives the value of the first of the ranks that run the blocks together on all of them."""
        self.step_cache = StepCache()
        """Who runs the blocks. Whoever calls the model sets it for each pass."""

    def compile_blocks(self, **options: Any) -> None:
        """Compile each block when it is first run; `options` are keywords of `torch.compile`."""
        for block in self.blocks:
            # not block.compile(): that has hooks compiled too, and those that bring weights cannot be
            block.forward = torch.compile(block.forward, **options)
        self.compiled = True

    @abstractmethod
    def embed(self, latents: torch.Tensor, timestep: torch.Tensor, **conditions: Any) -> tuple[torch.Tensor, Context]:
        """Tokens [B, L, d] of `latents` [B, C, T, H, W], and what the blocks need beside them."""

    @abstractmethod
    def project(self, tokens: torch.Tensor, context: Context) -> torch.Tensor:
        """The predicted patches [B, L, C * pt * ph * pw] from the last block's `tokens` [B, L, d], each by itself."""

    @abstractmethod
    def unpatchify(self, patches: torch.Tensor, context: Context) -> torch.Tensor:
        """The prediction [B, C, T, H, W] from all of its `patches`."""

    def run_blocks(self, tokens: torch.Tensor, context: Context) -> torch.Tensor:
        """The tokens after the last block; a step cache may skip blocks, here and nowhere else."""
        return self.step_cache.run(self, tokens, context)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, **conditions: Any) -> torch.Tensor:
        """Predict from `latents` [B, C, T, H, W] at `timestep` [B]; `conditions` are the keywords of `embed`."""
        return self._predicted(*self.embed(latents, timestep, **conditions))

    def together(self, passes: Sequence[Given]) -> list[torch.Tensor]:
        """What `forward` gives for each of `passes`, up to rounding: their blocks run at once.

        Each is embedded by itself, and blocks look at what is not of one length, such as text, clip by clip. So what
        has few rows is computed as in a pass of its own, and products have as many times more rows as there are passes.

        Raises:
            RunsAlone: the blocks cannot.
        """
        embedded = [self.embed(one.latents, one.timestep, **one.conditions) for one in passes]
        first, *others = (context for _, context in embedded)
        context = cast(Context, first.joined(others))
        prediction = self._predicted(torch.cat([one for one, _ in embedded]), context)
        return list(prediction.split([len(one) for one, _ in embedded]))

    def _predicted(self, tokens: torch.Tensor, context: Context) -> torch.Tensor:
        """The prediction [B, C, T, H, W] from what `embed` gives."""
        for module in self.modules():
            if isinstance(module, DistributedAttention):
                module.backend.prepare(context.grid, tokens.device)
        along = {name: (getattr(context, name), dim) for name, dim in context.along_sequence.items()}
        local_tokens, local_along = self.sequence.scatter(tokens, along)
        local_context = dataclasses.replace(context, **local_along) if local_along else context
        if self.compiled:
            _mark_lengths(local_context)
        local_tokens = self.run_blocks(local_tokens, local_context)
        # patches are many times smaller than tokens: they are what is sent
        patches = self.sequence.gather(self.project(local_tokens, local_context))
        return self.unpatchify(patches, context)


def _mark_lengths(context: BlockContext) -> None:
    """Tell the compiler which lengths change from prompt to prompt, or it would compile once more for the second."""
    for name, dim in context.by_prompt.items():
        value = getattr(context, name)
        if value is not None:
            torch._dynamo.maybe_mark_dynamic(value, dim)
