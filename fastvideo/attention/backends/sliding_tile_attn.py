"""Sliding tile attention (STA, arXiv 2502.04507): each tile of queries sees the tiles of a window around it, and heads
may differ in their windows."""

from functools import lru_cache

import torch

from fastvideo.attention.backends.base import AttentionCall, Grid, LayerPlace
from fastvideo.attention.backends.blocks import VideoBackend, attend_blocks, cut_grid, flex_rows
from fastvideo.configs.attention import AttentionOptions, Sizes


class SlidingTileBackend(VideoBackend):
    """Each tile of queries sees as many tiles: at an edge the window stops there and does not shrink. An even window
    looks one tile further back than ahead. A window as large as the grid is attention over all keys."""

    name = "SLIDING_TILE_ATTN"

    def __init__(self, tile: Sizes = (6, 8, 8), windows: tuple[Sizes, ...] = (), reason: str | None = None) -> None:
        """
        Args:
            tile: tokens of a tile in time, height and width.
            windows: tiles of the window of each head on this rank, or one for all of them.
            reason: why there are no windows.
        """
        super().__init__()
        self.tile = tile
        self.windows = windows
        self._reason = reason

    @classmethod
    def for_layer(cls, options: AttentionOptions, place: LayerPlace) -> "SlidingTileBackend":
        if options.STA_window is not None:
            return cls(options.STA_tile_size, (options.STA_window,))
        if not options.STA_windows:
            return cls(reason="needs to know its windows; set STA_window or mask_strategy_file_path")
        given = options.STA_windows
        layers, heads = (1 + max(place[axis] for place in given) for axis in (0, 1))
        if place.heads is None or (layers, heads) != (place.layers, place.heads) or len(given) != layers * heads:
            return cls(reason=f"the file of windows has {len(given)} for {layers} layers of {heads} heads, the model "
                       f"has {place.layers} layers of {place.heads} heads; write one for each")  # fmt: skip
        rank, parts = place.part
        here = range(heads * rank // parts, heads * (rank + 1) // parts)
        return cls(options.STA_tile_size, tuple(given[place.layer, head] for head in here))

    def why_not(self, call: AttentionCall) -> str | None:
        if not self.windows:
            return self._reason or "needs to know its windows; set STA_window or mask_strategy_file_path"
        return super().why_not(call)

    def cut(self, grid: Grid, device: torch.device) -> None:
        self._blocks = cut_grid(grid, self.tile, flex_rows(device), device)
        self._near = torch.stack([tiles_near(self._blocks.counts, window, device) for window in self.windows])
        self._everything = bool(self._near.all())

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self._everything:
            return self._dense(q, k, v)
        q_tiles, k_tiles, v_tiles = (self._blocks.cut(x) for x in (q, k, v))
        near = self._near.expand(*q_tiles.shape[:3], -1)
        return self._blocks.join(attend_blocks(q_tiles, k_tiles, v_tiles, near, self._blocks.filled))


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def tiles_near(counts: Grid, window: Sizes, device: torch.device) -> torch.Tensor:
    """[N, N] bool: whether a tile of queries sees one of keys, in a grid of `counts` tiles."""
    axes = []
    for count, width in zip(counts, window, strict=True):
        width = min(width, count)
        distance = torch.arange(count) - (torch.arange(count) - width // 2).clamp(0, count - width)[:, None]
        axes.append((distance >= 0) & (distance < width))
    t, h, w = axes
    near = t[:, None, None, :, None, None] & h[None, :, None, None, :, None] & w[None, None, :, None, None, :]
    return near.flatten(3).flatten(0, 2).to(device)
