"""Decoding of video spread over ranks, in time, in space, or both, that gives what one rank gives.

Ranks form a grid of time x space, with space fastest. In space, each holds some rows of the latents, from the top on.
In time, the clip is cut into chunks, and round by round each rank takes the next: in round r, rank i of T takes chunk
r T + i. So memory is that of a chunk, and video can leave in parts. All ranks are in the same layer at about the same
time, and nothing is computed twice:

- before a convolution over rows, a rank exchanges its first and last row with those above and below it;
- before a convolution over time, it sends its last input frames to the rank that has the next chunk. They include the
  rows around, which it has by then;
- for attention within a frame, ranks of the same frames exchange all keys and values.

Bytes that a rank sends for a chunk of B clips, of e bytes a value, with T_l frames of h_l rows of W_l columns of C_l
channels into convolution l of its part:

- in time: B e sum_l f_l C_l (h_l + 2 s_l) W_l, over layers that reach f_l frames back (2 for kernels of 3), when there
  is a next chunk; s_l is 1 where space is split too and the kernel has 3 rows, otherwise 0;
- in space: B e sum_l C_l T_l W_l for each neighbour, over layers whose kernel has 3 rows, and in attention
  2 B e C T h W for each other rank of the same frames;
- to rank 0, the video.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fastvideo.distributed.groups import Group


@dataclass(frozen=True)
class Grid:
    """How many ranks share the frames, and how many the rows; ranks beyond `time * space` have nothing to do."""

    time: int
    space: int


def spread(count: int, shares: int) -> list[int]:
    """`count` things in `shares` nearly equal shares, the larger ones first."""
    least, more = divmod(count, shares)
    return [least + (index < more) for index in range(shares)]


def rounds_of(frames: int, ranks: int, chunk: int) -> int:
    """How many times `ranks` ranks take at most `chunk` of `frames` frames each."""
    return -(-frames // (ranks * chunk))


def split_grid(ranks: int, frames: int, rows: int, chunk: int) -> Grid:
    """The grid of at most `ranks` ranks that decodes a clip soonest.

    Its busiest rank has the least to do. Of equals it is the one with most ranks in time: so time alone when all of
    them are busy in every round, and space where there are too few frames.

    Args:
        ranks: how many there are.
        frames: of the latents.
        rows: of the latents.
        chunk: the most latent frames that a rank takes at once.
    """

    def load(grid: Grid) -> int:
        chunks = spread(frames, grid.time * rounds_of(frames, grid.time, chunk))
        return sum(chunks[:: grid.time]) * max(spread(rows, grid.space))

    grids = [Grid(time, min(ranks // time, rows)) for time in range(1, min(ranks, frames) + 1)]
    return min(grids, key=lambda grid: (load(grid), -grid.time))


@dataclass(frozen=True)
class Plan:
    """Who decodes what of a clip."""

    grid: Grid
    chunks: Sequence[int]
    """Latent frames of each chunk; only the last may be empty."""
    rows: Sequence[int]
    """Latent rows of each rank in space."""

    @property
    def rounds(self) -> int:
        return len(self.chunks) // self.grid.time

    @property
    def used(self) -> int:
        """Chunks that are not empty."""
        return sum(map(bool, self.chunks))

    def chunk_of(self, rank: int, turn: int) -> int | None:
        """The chunk that `rank` decodes a part of in round `turn`; None when it has nothing to do."""
        time = rank // self.grid.space
        chunk = turn * self.grid.time + time
        return chunk if time < self.grid.time and chunk < self.used else None

    def part(self, latents: torch.Tensor, rank: int, chunk: int) -> torch.Tensor:
        """The frames of `chunk`, and the rows of `rank`, of `latents` [B, C, t, h, w]."""
        space = rank % self.grid.space
        frames = latents.narrow(2, sum(self.chunks[:chunk]), self.chunks[chunk])
        return frames.narrow(3, sum(self.rows[:space]), self.rows[space])


class FrameSplit:
    """Splits decoding over the ranks of `group`. All of them stream the same clips in the same order."""

    def __init__(self, group: Group, choose: Callable[[int, int, int, int], Grid] = split_grid) -> None:
        """`choose` is asked as `split_grid` is."""
        self.group = group
        self.choose = choose

    def plan(self, latents: torch.Tensor, chunk: int) -> Plan:
        """Of `latents` [B, C, t, h, w]."""
        _, _, frames, rows, _ = latents.shape
        grid = self.choose(self.group.size, frames, rows, chunk)
        chunks = spread(frames, grid.time * rounds_of(frames, grid.time, chunk))
        return Plan(grid, chunks, spread(rows, grid.space))

    def parts(self, latents: torch.Tensor, chunk: int) -> int:
        """How many parts `stream` gives: the rounds."""
        return self.plan(latents, chunk).rounds

    def stream(
        self,
        decode: "Callable[[torch.Tensor, Neighbours], torch.Tensor]",
        latents: torch.Tensor,
        chunk: int,
        rate: int,
        nothing: torch.Tensor,
    ) -> Iterator[torch.Tensor]:
        """The video of `latents`, a round at a time, on rank 0; on other ranks as many times `nothing`.

        Args:
            decode: the video [B, 3, T, H, W] of some frames and rows of the latents.
            latents: [B, C, t, h, w], the same on every rank.
            chunk: the most latent frames that go through `decode` at once.
            rate: video frames for each latent frame after the first, which gives one.
            nothing: video of no frames [B, 3, 0, H, W].
        """
        plan = self.plan(latents, chunk)
        neighbours = Neighbours(self.group, plan)
        for turn in range(plan.rounds):
            mine = plan.chunk_of(self.group.rank, turn)
            video = nothing
            if mine is not None:
                neighbours.chunk = mine
                video = decode(plan.part(latents, self.group.rank, mine), neighbours)
            video = self._gather(video, plan, turn, rate, nothing)
            # whoever stops here leaves nothing behind that the next clip would receive
            neighbours.finish()
            yield video

    def _gather(self, video: torch.Tensor, plan: Plan, turn: int, rate: int, nothing: torch.Tensor) -> torch.Tensor:
        """All parts of a round in their places on rank 0, which has one; `nothing` elsewhere."""
        if self.group.rank:
            self.group.exchange([(video.contiguous(), 0)] if video.shape[2] else [], [])()
            return nothing
        b, c, _, h, w = nothing.shape
        scale = h // sum(plan.rows)
        strips: list[list[torch.Tensor]] = []
        received = []
        for rank in range(plan.grid.time * plan.grid.space):
            chunk = plan.chunk_of(rank, turn)
            if chunk is None:
                break
            frames = rate * plan.chunks[chunk] - (0 if chunk else rate - 1)
            strip = video.new_empty(b, c, frames, scale * plan.rows[rank % plan.grid.space], w) if rank else video
            if rank:
                received.append((strip, rank))
            if rank % plan.grid.space == 0:
                strips.append([])
            strips[-1].append(strip)
        self.group.exchange([], received)()
        return torch.cat([torch.cat(strip, dim=3) for strip in strips], dim=2)


class Neighbours:
    """What a layer sees beyond this rank's frames and rows: it comes from the ranks that have it."""

    def __init__(self, group: Group, plan: Plan) -> None:
        """Of a clip that starts."""
        self.group, self.plan = group, plan
        self.time, self.space = divmod(group.rank, plan.grid.space)
        self.chunk = 0
        """That goes through the layers."""
        self._before: dict[nn.Module, torch.Tensor] = {}
        """On the first rank in time: the frames before its next chunk, by the layer that they go into."""
        self._pending: list[Callable[[], None]] = []

    def started(self, layer: nn.Module) -> bool:
        """Whether this chunk is not the clip's first."""
        return self.chunk > 0

    def extend(
        self,
        layer: nn.Module,
        x: torch.Tensor,
        frames: int,
        rows: int,
        prepare: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, int]:
        """`x` [B, C, T, H, W] between the rows around it, and behind the frames before it, with zeros outside the clip;
        and the rows of zeros that are still to be added on either side: none where space is split.

        `x` may be single frames [N, C, H, W] when `frames` is 0. `prepare` is done to it first.
        """
        if prepare is not None:
            x = prepare(x, None)
        around = rows if self.plan.grid.space > 1 else 0
        if not frames and not around:
            return x, rows
        if x.dim() == 4:
            return self.extend(layer, x.unsqueeze(2), frames, rows)[0].squeeze(2), rows - around
        b, c, t, h, w = x.shape
        channels_last = x.is_contiguous(memory_format=torch.channels_last_3d)
        layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        shape = (b, c, frames + t, h + 2 * around, w)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
        y[:, :, frames:, around : around + h] = x
        if around and t:
            self._fill_rows(y[:, :, frames:], around)
        if frames:
            self._fill_frames(layer, y, frames)
        return y, rows - around

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """The values [..., P, C] at all positions of a frame, row by row, of those at this rank's in `x`."""
        rows = self.plan.rows
        if len(rows) == 1:
            return x
        x = x.contiguous()
        *shape, positions, channels = x.shape
        width = positions // rows[self.space]
        strips = [x if i == self.space else x.new_empty(*shape, width * h, channels) for i, h in enumerate(rows)]
        others = [(strip, self._rank(self.time, i)) for i, strip in enumerate(strips) if i != self.space]
        self.group.exchange([(x, rank) for _, rank in others], others)()
        return torch.cat(strips, dim=-2)

    def finish(self) -> None:
        """Wait for what was left under way."""
        for wait in self._pending:
            wait()
        self._pending.clear()

    def _rank(self, time: int, space: int) -> int:
        return time % self.plan.grid.time * self.plan.grid.space + space

    def _fill_rows(self, y: torch.Tensor, rows: int) -> None:
        """Put the outer `rows` rows of `y` on either side in place, and send the ones next to them."""
        last = y.shape[3] - rows
        send, receive, places = [], [], []
        for outside, inside, space in ((0, rows, self.space - 1), (last, last - rows, self.space + 1)):
            place = y.narrow(3, outside, rows)
            if 0 <= space < self.plan.grid.space:
                rank = self._rank(self.time, space)
                buffer = _packed_like(place)
                send.append((_packed(y.narrow(3, inside, rows)), rank))
                receive.append((buffer, rank))
                places.append((place, buffer))
            else:
                place.zero_()
        self.group.exchange(send, receive)()
        for place, buffer in places:
            place.copy_(buffer.movedim(-1, 1))

    def _fill_frames(self, layer: nn.Module, y: torch.Tensor, frames: int) -> None:
        """Put the first `frames` frames of `y` in place, and send the last ones to where they come before others."""
        head, tail = y[:, :, :frames], y[:, :, -frames:]
        followed = self.chunk + 1 < self.plan.used
        after, before = self._rank(self.time + 1, self.space), self._rank(self.time - 1, self.space)
        if self.time:
            buffer = _packed_like(head)
            # a tail that is longer than the chunk begins with frames that have to come first
            early = followed and y.shape[2] >= 2 * frames
            self.group.exchange([(_packed(tail), after)] if early else [], [(buffer, before)])()
            head.copy_(buffer.movedim(-1, 1))
            if followed and not early:
                self.group.exchange([(_packed(tail), after)], [])()
            return
        if self.chunk:
            head.copy_(self._before.pop(layer).movedim(-1, 1))
        else:
            head.zero_()
        if self.plan.grid.time == 1:
            if followed:
                # a copy: a view would keep all of `y`
                self._before[layer] = tail.movedim(1, -1).clone(memory_format=torch.contiguous_format)
            return
        self.group.exchange([(_packed(tail), after)] if followed else [], [])()
        if self.chunk + self.plan.grid.time < self.plan.used:
            # the last rank's tail is for the next round: nothing waits for it in this one
            self._before[layer] = _packed_like(head)
            self._pending.append(self.group.exchange([], [(self._before[layer], before)]))


def _packed(x: torch.Tensor) -> torch.Tensor:
    """[B, C, T, H, W] as contiguous [B, T, H, W, C], which is how activations lie."""
    return x.movedim(1, -1).contiguous()


def _packed_like(x: torch.Tensor) -> torch.Tensor:
    """Room for `_packed(x)`."""
    return x.new_empty(x.movedim(1, -1).shape)
