"""Video mixture of block attention (VMoBA, arXiv 2506.23858): each query sees its own chunk of keys and those whose
mean key is most like it, and the shape of the chunks changes from layer to layer.

The rules of choice are those of the authors' `vmoba.py`, but within each sample: there, samples of a batch compete.
"""

import math

import torch
from torch.nn.attention.flex_attention import BlockMask

from fastvideo.attention.backends.base import AttentionCall, Grid, LayerPlace
from fastvideo.attention.backends.blocks import Blocks, Flex, VideoBackend, compiled_flex, cut_grid, listed
from fastvideo.attention.backends.sdpa import SDPABackend
from fastvideo.configs.attention import AttentionOptions, MoBAConfig
from fastvideo.distributed.sequence import merge_attention

FLEX_BLOCK = 128
"""Queries and keys of a block of flex attention."""


class VMoBABackend(VideoBackend):
    """Each query chooses its chunks of keys. With a threshold of 1, or a topk of all chunks, it is attention over all
    keys."""

    name = "VMOBA_ATTN"

    def __init__(self, config: MoBAConfig | None = None, place: LayerPlace | None = None) -> None:
        super().__init__()
        self.config = config or MoBAConfig()
        self.place = place or LayerPlace()
        self._blocks: Blocks | None = None
        self._topk = 0

    @classmethod
    def for_layer(cls, options: AttentionOptions, place: LayerPlace) -> "VMoBABackend":
        return cls(options.moba, place)

    def why_not(self, call: AttentionCall) -> str | None:
        kind = self.config.moba_threshold_type
        if self.place.part[1] > 1 and kind in ("block", "overall"):
            return (
                f"moba_threshold_type {kind!r} lets all heads compete, and a rank has some of them; use 'query_head' "
                "or 'head_global', or neither tp_size nor ulysses_size"
            )
        if call.device == "mps":
            return "merges attention over chunks by their log-sum-exps, which PyTorch does not give on mps"
        return super().why_not(call)

    def cut(self, grid: Grid, device: torch.device) -> None:
        chunk = self.config.chunk_of(self.place.layer, grid)
        self._blocks = None
        if chunk is not None:
            self._blocks = cut_grid(grid, chunk[0], 1, device)
            count = math.prod(self._blocks.counts)
            self._topk = min(chunk[1], count)
            self._chunk = torch.arange(count, device=device).repeat_interleave(self._blocks.sizes.long())
            self._back = self._blocks.order.argsort()

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self._blocks is None or len(self._blocks.sizes) == 1:
            return self._dense(q, k, v)
        q, k, v = (x.transpose(1, 2).index_select(2, self._blocks.order) for x in (q, k, v))
        likeness = q.float() @ self._means(k).transpose(-1, -2)
        chosen = choose_chunks(likeness, self._chunk, self.config, self._topk)
        if q.is_cuda:
            out = flex_chosen(compiled_flex(), q, k, v, chosen, self._chunk)
        else:
            out = merged_chunks(q, k, v, chosen, self._blocks.sizes)
        return out.index_select(2, self._back).transpose(1, 2)

    def _means(self, k: torch.Tensor) -> torch.Tensor:
        """The mean key [B, heads, chunks, D] fp32 of each chunk of `k` [B, heads, L, D]."""
        assert self._blocks is not None
        sums = k.new_zeros(*k.shape[:2], len(self._blocks.sizes), k.shape[3], dtype=torch.float32)
        return sums.index_add_(2, self._chunk, k.float()) / self._blocks.sizes[:, None]


def choose_chunks(likeness: torch.Tensor, chunk: torch.Tensor, config: MoBAConfig, topk: int) -> torch.Tensor:
    """Which chunks each query sees, [B, heads, L, C]; its own is among them where the rule is a threshold.

    Args:
        likeness: of each query to the mean key of each chunk, [B, heads, L, C] fp32.
        chunk: [L], the chunk of each token.
        config: the rule.
        topk: chunks for each query, or on average where queries compete.
    """
    own = torch.nn.functional.one_hot(chunk, likeness.shape[3]).bool().expand_as(likeness)
    # what competes comes last
    order, start = {
        "query_head": ((0, 1, 2, 3), 3), "block": ((0, 3, 1, 2), 2), "head_global": ((0, 1, 2, 3), 2),
        "overall": ((0, 1, 2, 3), 1),
    }[config.moba_threshold_type]  # fmt: skip
    values, mine = (x.permute(order).flatten(start) for x in (likeness, own))
    if config.moba_select_mode == "topk":
        values = values.masked_fill(mine, torch.inf)
        best = values.topk(topk * values.shape[-1] // likeness.shape[3], dim=-1, sorted=False).indices
        chosen = torch.zeros_like(mine).scatter_(-1, best, True)
    else:
        chosen = reach_threshold(values, mine, config.moba_threshold)
    permuted = [likeness.shape[axis] for axis in order]
    return chosen.unflatten(-1, permuted[start:]).permute([order.index(axis) for axis in range(4)])


def reach_threshold(values: torch.Tensor, own: torch.Tensor, threshold: float) -> torch.Tensor:
    """Which of the last dimension of `values` are needed to have `threshold` of their sum, once they are scaled to 0
    to 1: `own` in any case, then the largest, one of them at least."""
    if threshold == 1:
        return torch.ones_like(own)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    span = torch.where(high - low <= 1e-6, torch.ones_like(high), high - low)
    weights = (values - low) / span
    total = weights.sum(-1, keepdim=True) + 1e-6
    missing = (threshold - (weights * own).sum(-1, keepdim=True) / total).clamp(min=0)
    others, order = weights.masked_fill(own, 0).sort(dim=-1, descending=True)
    before = (others.cumsum(-1) - others) / total
    needed = before < missing
    needed[..., 0] = True
    return torch.zeros_like(own).scatter_(-1, order, needed) | own


def merged_chunks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, chosen: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """Attention of each query over its chunks, chunk by chunk.

    `q`, `k`, `v` are [B, heads, L, D], `chosen` is [B, heads, L, C], and chunk c has `sizes[c]` keys.
    """
    dense, out = SDPABackend(), torch.empty_like(q)
    ends = sizes.cumsum(0).long().tolist()
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            merged = torch.zeros_like(q[b, h], dtype=torch.float32)
            lse = torch.full(q.shape[2:3], -torch.inf, device=q.device)
            for c, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
                rows = chosen[b, h, :, c].nonzero().squeeze(1)
                if len(rows) == 0:
                    continue
                queries = q[b, h].index_select(0, rows)
                one, two, three = (x[None, :, None] for x in (queries, k[b, h, start:end], v[b, h, start:end]))
                part, part_lse = dense.with_logsumexp(one, two, three)
                both, both_lse = merge_attention(merged[rows], lse[rows], part[0, :, 0], part_lse[0, :, 0])
                merged[rows], lse[rows] = both, both_lse
            out[b, h] = merged
    return out


def flex_chosen(
    flex: Flex,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    chosen: torch.Tensor,
    chunk: torch.Tensor,
) -> torch.Tensor:
    """The same by `flex`, with `chunk` [L], the chunk of each token."""

    def sees(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return chosen[b, h, i, chunk[j]]

    length, chunks = chosen.shape[2:]
    missing = -length % FLEX_BLOCK
    # which chunks a block of queries needs, and which blocks of keys those chunks lie in
    needed = torch.nn.functional.pad(chosen, (0, 0, 0, missing)).unflatten(2, (-1, FLEX_BLOCK)).any(3)
    block_of = torch.arange(length, device=q.device) // FLEX_BLOCK
    lies_in = torch.zeros(chunks, (length + missing) // FLEX_BLOCK, device=q.device)
    lies_in[chunk, block_of] = 1
    visited = needed.float() @ lies_in > 0
    mask = BlockMask.from_kv_blocks(
        *listed(visited), BLOCK_SIZE=FLEX_BLOCK, mask_mod=sees, seq_lengths=(length, length)
    )
    return flex(q, k, v, block_mask=mask)
