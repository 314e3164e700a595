"""How a pipeline is laid out over devices: numbers only, nothing here starts or talks to a process."""

from dataclasses import dataclass
from typing import Any

from fastvideo.utils import require


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The degrees of each way to split the work; their product is the number of devices.

    Ranks are numbered with `tp` fastest, then `ulysses`, `ring` and `cfg`, so that what talks most is nearest.
    """

    tp: int = 1
    """Tensor parallel: each rank holds a slice of the weights of the transformer and the text encoder."""
    ulysses: int = 1
    """Sequence parallel by exchanging heads for tokens around each attention (arXiv 2309.14509)."""
    ring: int = 1
    """Sequence parallel by passing keys and values around (arXiv 2310.01889)."""
    cfg: int = 1
    """Guidance parallel: 2 computes the conditional and the unconditional prediction at the same time."""
    fsdp: bool = False
    """Whether the ranks that would hold equal weights hold a shard of them each, and gather a block at a time."""
    vae: bool = False
    """Whether the decoder's work is split over all ranks."""

    def __post_init__(self) -> None:
        for name in ("tp", "ulysses", "ring", "cfg"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(self.cfg <= 2, "cfg", self.cfg, "must be 1 or 2: guidance has two predictions")
        require(not self.fsdp or self.replicas > 1, "fsdp", True,
                "all ranks hold slices already; there is nothing to shard", "leave it False")  # fmt: skip

    @property
    def sp(self) -> int:
        """The ranks that a sequence is spread over."""
        return self.ulysses * self.ring

    @property
    def replicas(self) -> int:
        """The ranks that hold the same weights, unless `fsdp` shards them."""
        return self.sp * self.cfg

    @property
    def world(self) -> int:
        """The number of devices."""
        return self.tp * self.sp * self.cfg

    def options(self) -> dict[str, Any]:
        """The options of a generator that ask for this layout."""
        return {
            "num_gpus": self.world, "tp_size": self.tp, "ulysses_size": self.ulysses, "ring_size": self.ring,
            "cfg_size": self.cfg, "use_fsdp_inference": self.fsdp,
        }  # fmt: skip

    def __str__(self) -> str:
        parts = [
            f"{name}={getattr(self, name)}" for name in ("cfg", "ring", "ulysses", "tp") if getattr(self, name) > 1
        ]
        parts += [name for name in ("fsdp", "vae") if getattr(self, name)]
        return " ".join(parts) or "one device"


def part_of(extent: int, rank: int, size: int) -> tuple[int, int]:
    """Start and stop of the part of rank `rank` of `size` among `extent` things in order: equal parts, of which the
    last ones may be shorter or empty. It is how FSDP divides too."""
    part = -(-extent // size)
    start = min(rank * part, extent)
    return start, min(start + part, extent)
