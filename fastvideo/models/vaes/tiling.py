"""Tiles that overlap in space, and how they come together, as `tiled_decode` and `tiled_encode` of the reference's
`diffusers/models/autoencoders/autoencoder_kl_wan.py` have it. Nothing here knows what makes a tile.
"""

from dataclasses import dataclass

import torch

from fastvideo.utils import require


@dataclass(frozen=True)
class Tile:
    """One tile of a frame: which it is, from the top and from the left, and where it lies."""

    row: int
    column: int
    top: int
    left: int
    height: int
    width: int

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Its part of `x` [B, C, T, H, W]."""
        return x.narrow(3, self.top, self.height).narrow(4, self.left, self.width)

    def scaled(self, scale: int) -> "Tile":
        """The same tile of frames that are `scale` times as large."""
        sizes = (self.top, self.left, self.height, self.width)
        return Tile(self.row, self.column, *(scale * size for size in sizes))


@dataclass(frozen=True)
class Tiling:
    """Square tiles of `size` that begin every `stride`; those at the edges are cut. Neighbours are blended where they
    overlap. A frame that fits into one tile is not cut."""

    size: int = 256
    stride: int = 192

    def __post_init__(self) -> None:
        require(0 < self.stride <= self.size, "stride", self.stride, f"must be from 1 to size={self.size}")

    @property
    def overlap(self) -> int:
        """What a tile shares with the next one."""
        return self.size - self.stride

    def over(self, scale: int) -> "Tiling":
        """The same tiles of frames that are `scale` times smaller.

        Raises:
            ValueError: they do not begin and end at whole positions there.
        """
        for name, value in (("size", self.size), ("stride", self.stride)):
            fit = max(scale, value // scale * scale)
            require(value % scale == 0, name, value, f"must be a multiple of {scale}", f"try {fit}")
        return Tiling(self.size // scale, self.stride // scale)

    def tiles(self, height: int, width: int) -> list[Tile]:
        """Those of a frame, row by row."""
        if height <= self.size and width <= self.size:
            return [Tile(0, 0, 0, 0, height, width)]
        return [
            Tile(row, column, top, left, min(self.size, height - top), min(self.size, width - left))
            for row, top in enumerate(range(0, height, self.stride))
            for column, left in enumerate(range(0, width, self.stride))
        ]


class Mosaic:
    """Frames that tiles are put into, row by row, each some frames at a time; beside them it holds the edges that the
    next tiles are blended with."""

    def __init__(self, frames: torch.Tensor, tiling: Tiling) -> None:
        """`frames` [B, C, T, H, W] is filled; `tiling` is in its units."""
        self.frames = frames
        self.tiling = tiling
        self._above: dict[tuple[int, int], torch.Tensor] = {}
        self._left: dict[int, torch.Tensor] = {}

    def put(self, x: torch.Tensor, tile: Tile, first: int) -> None:
        """Blend `x` [B, C, t, h, w], the frames of `tile` from number `first` on, and put them in place."""
        x = x.to(self.frames)
        overlap, stride = self.tiling.overlap, self.tiling.stride
        # a neighbour counts as it is after its own blending, so corners are blended in both directions
        if tile.row and overlap:
            x = blended(self._above[tile.column, first], x, 3, overlap)
        if tile.column and overlap:
            x = blended(self._left[first], x, 4, overlap)
        if overlap:
            self._above[tile.column, first] = x[:, :, :, -overlap:].clone()
            self._left[first] = x[..., -overlap:].clone()
        x = x[:, :, :, :stride, :stride]
        place = self.frames.narrow(2, first, x.shape[2]).narrow(3, tile.top, x.shape[3])
        place.narrow(4, tile.left, x.shape[4]).copy_(x)


def blended(before: torch.Tensor, x: torch.Tensor, dim: int, extent: int) -> torch.Tensor:
    """`x`, which at its start along `dim` passes over `extent` positions from the end of `before` into itself."""
    extent = min(extent, before.shape[dim], x.shape[dim])
    if not extent:
        return x
    ramp = (torch.arange(extent, dtype=torch.float64) / extent).float()
    ramp = ramp.view(-1, *(1,) * (x.ndim - dim - 1)).to(x.device)
    ours, theirs = x.narrow(dim, 0, extent).float(), before.narrow(dim, before.shape[dim] - extent, extent).float()
    x = x.clone()
    x.narrow(dim, 0, extent).copy_(theirs * (1 - ramp) + ours * ramp)
    return x
