"""Sequence parallelism: each rank holds a part of the tokens, and attention sees them all.

Ulysses (arXiv 2309.14509) exchanges heads for tokens around the attention, ring attention (arXiv 2310.01889) passes
keys and values from rank to rank while it computes; both together are a ring of Ulysses groups (arXiv 2405.07719).

Lengths that do not divide are padded at the end. No padded token is ever a key, and what is computed for padded queries
is cut off when the sequence is gathered.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from fastvideo.distributed.groups import Groups
from fastvideo.distributed.layout import part_of


class Attend(Protocol):
    """What is needed of an attention backend; q, k and v are [B, L, heads, D]."""

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor: ...

    def with_logsumexp(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The attention, and the log of the sum of its exponentiated logits [B, L, heads] fp32."""

    def with_gate(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The attention, plus `gate` [B, L, heads, D] times a coarse one."""


class SequenceShard:
    """This rank's part of a sequence, and attention over the whole of it.

    The parts are equal and in the order of `groups.sp`; the last ones may hold padding.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.length = 0
        """Of the whole sequence that was scattered last, without padding."""

    def scatter(
        self, tokens: torch.Tensor, along: Mapping[str, tuple[Any, int]]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """This rank's part of `tokens` [B, L, d] and of each value in `along`, a tensor or a tuple of tensors with the
        dimension that goes along the sequence."""
        self.length = tokens.shape[1]
        return self._part(tokens, 1), {name: self._each(value, dim) for name, (value, dim) in along.items()}

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """The whole of `tokens` [B, part of L, d], without padding, on every rank."""
        return self.groups.sp.all_gather(tokens, dim=1)[:, : self.length]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sums [n] of `values` [n, B, part of L] over the whole sequence, without padding."""
        start, stop = part_of(self.length, self.groups.sp.rank, self.groups.sp.size)
        return self.groups.sp.all_reduce(values[..., : stop - start].sum(dim=(1, 2)))

    def attend(
        self, backend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of this rank's `q` over the whole sequence, each [B, part of L, heads, D], as is `gate`."""
        ulysses = self.groups.ulysses
        parts: tuple[torch.Tensor, ...] = (q, k, v) if gate is None else (q, k, v, gate)
        if ulysses.size == 1:
            return self._around_the_ring(backend, *parts)
        parts = heads_for_tokens(torch.stack(parts), ulysses.size, ulysses.all_to_all).unbind()
        out = self._around_the_ring(backend, *parts)
        return tokens_for_heads(out, ulysses.size, ulysses.all_to_all)

    def _around_the_ring(
        self, backend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gate: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of `q` over the keys and values of all ring ranks; those of the next are on their way meanwhile."""
        ring, block = self.groups.ring, k.shape[1]
        # the keys that count: those of ring rank r are tokens r * block and on
        counts = [min(max(self.length - rank * block, 0), block) for rank in range(ring.size)]
        if ring.size == 1:
            count = counts[0]
            q, k, v = q[:, :count], k[:, :count], v[:, :count]
            out = backend(q, k, v) if gate is None else backend.with_gate(q, k, v, gate[:, :count])
            return _pad(out, 1, block - count)
        assert gate is None, "a ring with a gate branch: no backend that has one gives log-sum-exps"
        keys_values = torch.stack((k, v))
        merged: tuple[torch.Tensor, torch.Tensor] | None = None
        for step in range(ring.size):
            last = step == ring.size - 1
            arriving = None if last else ring.shift(keys_values)
            count = counts[(ring.rank - step) % ring.size]
            if count:
                k, v = keys_values[:, :, :count].unbind()
                part = backend.with_logsumexp(q, k, v)
                merged = part if merged is None else merge_attention(*merged, *part)
            if arriving is not None:
                keys_values = arriving()
        assert merged is not None, "a sequence without tokens"
        return merged[0].to(q.dtype)

    def _each(self, value: Any, dim: int) -> Any:
        return self._part(value, dim) if isinstance(value, torch.Tensor) else tuple(self._part(x, dim) for x in value)

    def _part(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        group = self.groups.sp
        start, stop = part_of(self.length, group.rank, group.size)
        most = part_of(self.length, 0, group.size)[1]
        return _pad(x.narrow(dim, start, stop - start), dim, most - (stop - start))


def merge_attention(
    out1: torch.Tensor, lse1: torch.Tensor, out2: torch.Tensor, lse2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention over two disjoint sets of keys from that over each, with their log-sum-exps: fp32
    [B, L, heads, D] and [B, L, heads]."""
    # a sigmoid of the difference never overflows
    weight = torch.sigmoid(lse2 - lse1).unsqueeze(-1)
    out = torch.lerp(out1.float(), out2.float(), weight)
    return out, torch.logaddexp(lse1, lse2)


def heads_for_tokens(x: torch.Tensor, size: int, exchange: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """From some tokens and all heads, `x` [n, B, L / size, heads, D], to all tokens and some heads."""
    n, batch, part, heads, dim = x.shape
    sent = x.view(n, batch, part, size, heads // size, dim).movedim(3, 0)
    received = exchange(sent.contiguous())
    return received.permute(1, 2, 0, 3, 4, 5).reshape(n, batch, size * part, heads // size, dim)


def tokens_for_heads(x: torch.Tensor, size: int, exchange: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The way back: from all tokens and some heads, `x` [B, L, heads / size, D], to some tokens and all heads."""
    batch, length, heads, dim = x.shape
    sent = x.view(batch, size, length // size, heads, dim).movedim(1, 0)
    received = exchange(sent.contiguous())
    return received.permute(1, 2, 0, 3, 4).reshape(batch, length // size, size * heads, dim)


def _pad(x: torch.Tensor, dim: int, count: int) -> torch.Tensor:
    """`x` with `count` zeros behind it along `dim`."""
    return F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, count)) if count else x
