"""Tensor parallelism of single parameters: which slice of a checkpoint's tensor a rank holds."""

from dataclasses import dataclass

from fastvideo.distributed.layout import part_of


@dataclass(frozen=True)
class TensorShard:
    """A parameter of which each rank of a group holds one slice along `dim`; stacked pieces are sliced each."""

    dim: int
    rank: int
    size: int
    full: int
    """Extent of the whole parameter along `dim`."""

    def bounds(self, extent: int) -> tuple[int, int]:
        """Start and stop of this rank's slice of `extent` entries."""
        return part_of(extent, self.rank, self.size)
