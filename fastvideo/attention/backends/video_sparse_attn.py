"""Video sparse attention (VSA, arXiv 2505.13389): attention among the means of cubes of tokens says which cubes each
cube of queries sees, and a gate adds that coarse attention itself."""

import math

import torch

from fastvideo.attention.backends.base import Grid, LayerPlace
from fastvideo.attention.backends.blocks import Blocks, VideoBackend, attend_blocks, cut_grid, flex_rows
from fastvideo.configs.attention import AttentionOptions

CUBE: Grid = (4, 4, 4)


class VideoSparseBackend(VideoBackend):
    """Each cube of queries sees the cubes whose mean key is most like its mean query.

    With `sparsity` 0 it is attention over all keys; the gate's branch does not depend on it.
    """

    name = "VIDEO_SPARSE_ATTN"
    gated = True

    def __init__(self, sparsity: float = 0.0) -> None:
        """`sparsity` is the share of the cubes that each cube of queries does not see, below 1."""
        super().__init__()
        self.sparsity = sparsity
        self._blocks: Blocks | None = None
        self._kept = 0

    @classmethod
    def for_layer(cls, options: AttentionOptions, place: LayerPlace) -> "VideoSparseBackend":
        return cls(options.VSA_sparsity)

    def cut(self, grid: Grid, device: torch.device) -> None:
        self._blocks = cut_grid(grid, CUBE, flex_rows(device), device)
        count = math.prod(self._blocks.counts)
        # the margin: (1 - 0.7) * 10 is a little more than 3
        self._kept = max(1, math.ceil((1 - self.sparsity) * count - 1e-6))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self._fine_and_coarse(q, k, v, None)

    def with_gate(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        self.check(q)
        return self._fine_and_coarse(q, k, v, gate)

    def _fine_and_coarse(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor | None
    ) -> torch.Tensor:
        assert self._blocks is not None
        blocks, everything = self._blocks, self._kept == math.prod(self._blocks.counts)
        if everything and gate is None:
            return self._dense(q, k, v)
        q_cubes, k_cubes, v_cubes = (blocks.cut(x) for x in (q, k, v))
        logits = blocks.means(q_cubes) @ blocks.means(k_cubes).transpose(-1, -2) * q.shape[-1] ** -0.5
        if everything:
            fine = self._dense(q, k, v)
        else:
            best = logits.topk(self._kept, dim=-1, sorted=False).indices
            allowed = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True)
            fine = blocks.join(attend_blocks(q_cubes, k_cubes, v_cubes, allowed, blocks.filled))
        if gate is None:
            return fine
        coarse = logits.softmax(dim=-1) @ blocks.means(v_cubes)
        return fine + gate * blocks.spread(coarse.to(fine.dtype))
