"""Blocks of a video's token grid, and attention of each block of queries over the blocks of keys chosen for it.

On CUDA the kernel is `torch.nn.attention.flex_attention`. Elsewhere the chosen blocks are gathered and go through
`scaled_dot_product_attention`: that needs no compiler, and on a CPU that is not short of memory bandwidth it is quicker
than compiled flex attention, by half in bf16 (`benchmarks/sparse_attention.py`, figures in docs/attention.md).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from fastvideo.attention.backends.base import AttentionBackend, AttentionCall, Grid
from fastvideo.attention.backends.sdpa import SDPABackend

GATHERED_BYTES = 16 * 2**20
"""Of keys and values that are gathered at a time."""
FLEX_ROWS = 64
"""Blocks have a multiple of these slots where flex attention runs: its kernel has no smaller tile."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A grid of tokens cut into blocks, in time, height and width; those at the far ends may have fewer tokens.

    All blocks have as many slots. A slot that no token is left for holds the first of its block once more, which is
    never a key and whose query is dropped.
    """

    counts: Grid
    """Blocks along each axis."""
    tokens: torch.Tensor
    """[N, S]: the token in each slot of each block."""
    filled: torch.Tensor | None
    """[N, S]: whether the slot has a token of its own; None when all have."""
    sizes: torch.Tensor
    """[N] fp32: tokens of each block."""
    slots: torch.Tensor
    """[L]: the slot of each token, counted over all blocks."""
    order: torch.Tensor
    """[L]: the tokens, block by block."""

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [B, L, heads, D] as [B, heads, N, S, D]."""
        batch, _, heads, dim = x.shape
        return x.transpose(1, 2).index_select(2, self.tokens.flatten()).view(batch, heads, *self.tokens.shape, dim)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [B, heads, N, S, D] as [B, L, heads, D]."""
        return x.flatten(2, 3).transpose(1, 2).index_select(1, self.slots)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """What each block has, `x` [B, heads, N, D], at each of its tokens: [B, L, heads, D]."""
        return x.transpose(1, 2).index_select(1, self.slots // self.tokens.shape[1])

    def means(self, x: torch.Tensor) -> torch.Tensor:
        """The mean over the tokens of each block of `x` [B, heads, N, S, D]: [B, heads, N, D] fp32."""
        if self.filled is None:
            return x.mean(dim=3, dtype=torch.float32)
        return torch.einsum("bhnsd,ns->bhnd", x.float(), self.filled / self.sizes[:, None])


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def cut_grid(grid: Grid, tile: Grid, rows: int, device: torch.device) -> Blocks:
    """`grid` cut into blocks of `tile` tokens, whose slots are a multiple of `rows`."""
    tile = (min(tile[0], grid[0]), min(tile[1], grid[1]), min(tile[2], grid[2]))
    counts = tuple(-(-length // size) for length, size in zip(grid, tile, strict=True))
    axes = (torch.arange(count * size) for count, size in zip(counts, tile, strict=True))
    t, h, w = torch.meshgrid(*axes, indexing="ij")
    inside = (t < grid[0]) & (h < grid[1]) & (w < grid[2])
    token = (t * grid[1] + h) * grid[2] + w

    def by_block(x: torch.Tensor) -> torch.Tensor:
        for axis, size in ((2, tile[2]), (1, tile[1]), (0, tile[0])):
            x = x.unflatten(axis, (-1, size))
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)

    token, filled = by_block(token), by_block(inside)
    token = torch.where(filled, token, token[:, :1])  # the first is inside: a block has at least one token
    missing = -token.shape[1] % rows
    token = torch.cat((token, token[:, :1].expand(-1, missing)), dim=1)
    filled = F.pad(filled, (0, missing))
    slots = torch.empty(math.prod(grid), dtype=torch.int64)
    slots[token[filled]] = filled.flatten().nonzero().squeeze(1)
    return Blocks(
        counts=(counts[0], counts[1], counts[2]),
        tokens=token.to(device),
        filled=None if filled.all() else filled.to(device),
        sizes=filled.sum(1).float().to(device),
        slots=slots.to(device),
        order=token[filled].to(device),
    )


class VideoBackend(AttentionBackend):
    """A backend whose keys depend on where in the video a query is."""

    exact = False
    traced = False  # each grid, and each kind of layer, would be compiled anew

    def __init__(self) -> None:
        self.grid: Grid | None = None
        self._dense = SDPABackend()

    def why_not(self, call: AttentionCall) -> str | None:
        if call.has_bias or call.causal:
            return "takes neither a bias nor a causal mask"
        if not call.video:
            return "attends among the tokens of a video only"
        if call.logsumexp:
            return (
                "chooses among all keys, and a rank of a ring sees a part of them at a time; use ulysses_size or "
                "cfg_size in place of ring_size"
            )
        if call.device == "cuda" and find_spec("triton") is None:
            return "compiles flex attention on CUDA, which needs the package triton; install it"
        return None

    def prepare(self, grid: Grid, device: torch.device) -> None:
        if grid != self.grid:
            self.cut(grid, device)
            self.grid = grid

    @abstractmethod
    def cut(self, grid: Grid, device: torch.device) -> None:
        """Make what depends on `grid` alone; called when it is another than before.

        Raises:
            ValueError: it cannot be run.
        """

    @abstractmethod
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As `__call__`, of tokens that are those of the grid, at the usual scale."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
    ) -> torch.Tensor:
        assert bias is None, "why_not refuses a bias"
        assert not causal, "why_not refuses a causal mask"
        self.check(q)
        if scale is not None:
            q = q * (scale * q.shape[-1] ** 0.5)
        return self.attend(q, k, v)

    def check(self, q: torch.Tensor) -> None:
        """Check that the tokens of `q` [B, L, heads, D] are those of the grid.

        Raises:
            ValueError: there are more or fewer.
        """
        assert self.grid is not None, "prepare was not called"
        if q.shape[1] != math.prod(self.grid):
            raise ValueError(f"{self.name}: {q.shape[1]} tokens are not those of the grid {self.grid}")


def flex_rows(device: torch.device) -> int:
    """What the slots of blocks must be a multiple of on `device`."""
    return FLEX_ROWS if device.type == "cuda" else 1


def attend_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor, filled: torch.Tensor | None
) -> torch.Tensor:
    """Attention of each block of queries over the keys of some blocks.

    Args:
        q: [B, heads, N, S, D]; `k` and `v` alike.
        allowed: [B, heads, N, N], whether a block of queries sees one of keys; equally many for all blocks of a head.
        filled: [N, S]: which keys count; None for all.
    """
    if q.is_cuda:
        return flex_blocks(compiled_flex(), q, k, v, allowed, filled)
    return gathered_blocks(q, k, v, allowed, filled)


def gathered_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor, filled: torch.Tensor | None
) -> torch.Tensor:
    """`attend_blocks` by `scaled_dot_product_attention`."""
    batch, heads, count, size, dim = q.shape
    queries, keys, values = (x.reshape(-1, size, dim) for x in (q, k, v))
    out = torch.empty_like(queries)
    allowed = allowed.flatten(0, 1)
    kept = allowed[:, 0].sum(-1)
    for many in kept.unique().tolist():
        mine = (kept == many).nonzero()  # heads of samples that see as many blocks go through together
        rows = (mine * count + torch.arange(count, device=q.device)).flatten()
        near = allowed[mine.squeeze(1)].nonzero()[:, 2].view(-1, count, many)
        near = (mine[:, :, None] * count + near).flatten(0, 1)
        step = max(1, GATHERED_BYTES // (2 * many * size * dim * q.element_size()))
        for some, blocks in zip(rows.split(step), near.split(step), strict=True):
            k_near, v_near = (x[blocks.flatten()].view(-1, 1, many * size, dim) for x in (keys, values))
            mask = None if filled is None else filled[blocks % count].view(-1, 1, 1, many * size)
            these = queries[some].unsqueeze(1)
            out[some] = F.scaled_dot_product_attention(these, k_near, v_near, attn_mask=mask).squeeze(1)
    return out.view(batch, heads, count, size, dim)


Flex = Callable[..., torch.Tensor]


@lru_cache(maxsize=1)
def compiled_flex() -> Flex:
    """`flex_attention`, compiled; what is not would hold all logits in memory."""
    return torch.compile(flex_attention)


def flex_blocks(
    flex: Flex,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    allowed: torch.Tensor,
    filled: torch.Tensor | None,
) -> torch.Tensor:
    """`attend_blocks` by `flex`."""
    size = q.shape[3]
    key_filled = None if filled is None else filled.flatten()

    def sees(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        block = allowed[b, h, i // size, j // size]
        return block if key_filled is None else block & key_filled[j]

    # the kernel asks `sees` in blocks with empty slots only
    partly = torch.zeros_like(allowed) if filled is None else allowed & ~filled.all(1)
    mask = BlockMask.from_kv_blocks(
        *listed(partly),
        *listed(allowed & ~partly),
        BLOCK_SIZE=size,
        mask_mod=sees,
        seq_lengths=(q.shape[2] * size,) * 2,
    )
    rows = math.gcd(size, 128)
    options = {"BLOCK_M": rows, "BLOCK_N": rows} if q.is_cuda else None
    whole = (x.flatten(2, 3) for x in (q, k, v))
    return flex(*whole, block_mask=mask, kernel_options=options).view_as(q)


def listed(which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many are true along the last dimension, and where, those first."""
    return which.sum(-1, dtype=torch.int32), which.to(torch.int8).argsort(dim=-1, descending=True, stable=True).int()
