"""What a benchmark is told and what it finds, as plain data that goes between processes as JSON. No torch here."""

import dataclasses
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS, OURS_COMPILED, EAGER, COMPILED = "ours", "ours compiled", "eager", "compiled"
COMPILING = (OURS_COMPILED, COMPILED)
"""Peers whose first run compiles."""
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a component case is."""

    config: Mapping[str, Any]
    """The component's `config.json`; of a case that loads, those of several components by name."""
    shape: tuple[int, ...]
    """Of what goes in; what the numbers are, the kind says."""
    exact_frames: int | None = None
    """Compare this many of the first frames with the reference in fp32; None for all. The rest is compared with the
    reference in the case's own precision."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table."""

    name: str
    about: str
    kind: str
    """What runs it: a name in `KINDS` for a component, or "program" or "load"."""
    real: Size | None = None
    tiny: Size | None = None
    """For tests."""
    full: Size | None = None
    """In place of `real` with `--full`."""
    times: int | None = None
    """Run beside it a clip with so many times the frames, and measure how much more memory that takes of ours, nothing
    else."""
    cuda_only: bool = False
    """Only on CUDA, and only with `--full` or by name."""

    @property
    def profiled(self) -> bool:
        """Whether a profile can be had of it: of components that are timed."""
        return self.kind not in ("program", "load") and self.times is None

    def size(self, settings: "Settings") -> Size:
        """The size that `settings` ask for."""
        chosen = self.tiny if settings.tiny else self.full if settings.full and self.full else self.real
        assert chosen is not None, f"{self.name} has no size"
        return chosen

    def described(self, settings: "Settings") -> str:
        """What runs, in words; of a model that is cut short, with its layers."""
        layers = self.size(settings).config.get("num_layers")
        return self.about if layers is None else f"{self.about}, {layers} layers"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was asked for, beside the cases."""

    rounds: int = 5
    precision: str = "bf16"
    device: str = "cpu"
    threads: int | None = None
    """Of each process; None leaves it to PyTorch."""
    tiny: bool = False
    full: bool = False
    peers: tuple[str, ...] = (OURS, OURS_COMPILED, EAGER, COMPILED)
    """What runs a component, in the order of the columns."""
    profile: str | None = None
    """Folder for profiles."""

    def of(self, case: Case) -> "Settings":
        """These, without the peers that `case` is not for: of ours, the transformer alone is compiled."""
        peers = (peer for peer in self.peers if peer != OURS_COMPILED or case.kind == "dit")
        return dataclasses.replace(self, peers=tuple(peers))


@dataclass(kw_only=True)
class Result:
    """What one case gave; each mapping is by the name of what ran."""

    case: str
    about: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """One number a round."""
    flops: float | None = None
    """Of one run."""
    matmul: list[float] = field(default_factory=list)
    """FLOP/s of a large matrix product, measured between the rounds."""
    copy: list[float] = field(default_factory=list)
    """Bytes a second, read and written, of a large copy, likewise."""
    compile_seconds: dict[str, float] = field(default_factory=dict)
    host_peak: dict[str, int] = field(default_factory=dict)
    """Bytes: of a program in all, else over what the process held before the weights."""
    device_peak: dict[str, int] = field(default_factory=dict)
    weights: int | None = None
    """Bytes of the weights in their target dtype."""
    beyond: list[int] = field(default_factory=list)
    """Bytes at the peak of ours over its weights and the clip it makes, of a short clip and of a longer one."""
    errors: dict[str, float] = field(default_factory=dict)
    """Of the output; see `bound`."""
    bound: float | None = None
    """What an error may be at most."""
    failures: list[str] = field(default_factory=list)
    """Why the case does not count; empty when it does."""

    def median(self, peer: str) -> float:
        """Seconds of `peer`."""
        return statistics.median(self.seconds[peer])

    def ratio(self, peer: str, ours: str = OURS) -> "Ratio":
        """How many times as fast as `peer` ours is."""
        return ratio_of_medians(self.seconds[peer], self.seconds[ours])

    @property
    def rate(self) -> float | None:
        """FLOP/s of ours."""
        return None if self.flops is None or OURS not in self.seconds else self.flops / self.median(OURS)

    @property
    def share(self) -> float | None:
        """`rate` over that of a large matrix product."""
        return None if self.rate is None or not self.matmul else self.rate / statistics.median(self.matmul)

    def to_json(self) -> dict[str, Any]:
        """All of it, and what follows from it."""
        others = [peer for peer in self.seconds if peer != OURS and OURS in self.seconds]
        return {
            **dataclasses.asdict(self),
            "median": {peer: self.median(peer) for peer in self.seconds},
            "ratio": {peer: dataclasses.asdict(self.ratio(peer)) for peer in others},
            "flops_per_second": self.rate,
            "share_of_matmul": self.share,
        }


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and its 95% confidence interval."""

    value: float
    low: float
    high: float


def ratio_of_medians(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """The median of `above` over that of `below`, which were measured in the same rounds.

    The interval is the percentile bootstrap over rounds (Efron 1979): a round is drawn with both its numbers, as what
    disturbs a round disturbs both. The draws are the same each time.
    """
    draw = random.Random(0)
    rounds = range(len(above))
    ratios = []
    for _ in range(RESAMPLES):
        drawn = draw.choices(rounds, k=len(rounds))
        ratios.append(statistics.median(above[i] for i in drawn) / statistics.median(below[i] for i in drawn))
    ratios.sort()
    low, high = ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES) - 1]
    return Ratio(statistics.median(above) / statistics.median(below), low, high)
