"""What lies beyond a chunk of frames, and how the work of a decoder is spread: the forms, and those of one rank."""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.layers.residence import OnDevice, Residence
from fastvideo.models.vaes.tiling import Mosaic, Tiling
from fastvideo.platforms.cpu import return_freed_memory


class Prepare(Protocol):
    """Work on each position's channels of a layer's input."""

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        """`x` prepared; `out`, of the same shape, gets the result if it is given."""


class Neighbourhood(Protocol):
    """What a layer sees beyond the chunk of frames that goes through it: earlier frames, and rows on other ranks.

    All chunks of a clip go through all layers in the same order.
    """

    def started(self, layer: nn.Module) -> bool:
        """Whether frames of the clip went through `layer` before this chunk's."""

    def extend(
        self, layer: nn.Module, x: torch.Tensor, frames: int, rows: int, prepare: Prepare | None = None
    ) -> tuple[torch.Tensor, int]:
        """What a kernel of `layer` reaches from `x`, and the rows of zeros that a convolution still has to add.

        Args:
            layer: whose input `x` is.
            x: [B, C, T, H, W], or single frames [N, C, H, W] when `frames` is 0.
            frames: how many the kernel reaches back; before the clip's first there are zeros.
            rows: how many the kernel reaches above and below.
            prepare: is done to `x` first.

        Returns:
            `x` behind the frames before it and, where rows are spread over ranks, between the rows around it; and the
            rows of zeros to add on either side: `rows` where they are not spread, then 0.
        """

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """The values [..., P, C] at all positions of a frame, row by row, of those at this rank's in `x`."""


class Past:
    """The neighbourhood on one rank: per layer, the last input frames of the chunk before.

    An empty `Past` is the start of a clip.
    """

    def __init__(self) -> None:
        self._frames: dict[nn.Module, torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Of all layers."""
        return sum(frames.nbytes for frames in self._frames.values())

    def started(self, layer: nn.Module) -> bool:
        return layer in self._frames

    def extend(
        self, layer: nn.Module, x: torch.Tensor, frames: int, rows: int, prepare: Prepare | None = None
    ) -> tuple[torch.Tensor, int]:
        if not frames:
            return x if prepare is None else prepare(x, None), rows
        before = self._frames.get(layer)
        if prepare is not None and not torch.is_grad_enabled():
            x = _prepared(x, before, frames, prepare)
        else:
            x = x if prepare is None else prepare(x, None)
            x = F.pad(x, (0, 0, 0, 0, frames, 0)) if before is None else torch.cat((before, x), dim=2)
        # a copy: a view would keep all frames of all layers until the next chunk
        self._frames[layer] = x[:, :, -frames:].clone(memory_format=torch.channels_last_3d)
        return x, rows

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _prepared(x: torch.Tensor, before: torch.Tensor | None, frames: int, prepare: Prepare) -> torch.Tensor:
    """`x` prepared, behind the `frames` frames `before` it or zeros: written once, where a convolution will read it."""
    b, c, t, h, w = x.shape
    y = torch.empty((b, c, frames + t, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    if before is None:
        y[:, :, :frames].zero_()
    else:
        y[:, :, :frames] = before
    for one, place in zip(x.split(1), y[:, :, frames:].split(1), strict=True):
        prepare(one, place)
    return y


Decode = Callable[[torch.Tensor, Neighbourhood], torch.Tensor]
"""The video [B, 3, T, H, W] of some frames and rows of the latents, which lie in a neighbourhood."""


class DecoderSplit(Protocol):
    """Which frames and rows of a clip a rank decodes, and how the video comes together."""

    def parts(self, latents: torch.Tensor, chunk: int) -> int:
        """How many parts `stream` gives, the same on every rank."""

    def stream(
        self, decode: Decode, latents: torch.Tensor, chunk: int, rate: int, nothing: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """The video of `latents` [B, C, t, h, w], which every rank has whole, in parts that follow each other.

        Args:
            decode: what a rank does with its share.
            latents: the clip.
            chunk: the most latent frames that go through `decode` at once.
            rate: video frames for each latent frame after the first, which gives one.
            nothing: video of no frames [B, 3, 0, H, W].

        Yields:
            Parts [B, 3, T, H, W] on rank 0, and `nothing` on the others.
        """


class OneRank:
    """All of the work, a chunk at a time."""

    def parts(self, latents: torch.Tensor, chunk: int) -> int:
        return -(-latents.shape[2] // chunk)

    def stream(
        self, decode: Decode, latents: torch.Tensor, chunk: int, rate: int, nothing: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        past = Past()
        for part in latents.split(chunk, dim=2):
            yield decode(part, past)


class TiledSplit:
    """One tile after the other, the whole clip of each, so that the memory of a tile is what is needed beside the
    video, which comes together in host memory. `inner` says how a tile is decoded."""

    def __init__(self, tiling: Tiling, inner: DecoderSplit) -> None:
        """`tiling` is in units of latents."""
        self.tiling = tiling
        self.inner = inner

    def parts(self, latents: torch.Tensor, chunk: int) -> int:
        tiles = self.tiling.tiles(*latents.shape[3:])
        if len(tiles) == 1:
            return self.inner.parts(latents, chunk)
        return sum(self.inner.parts(tile.of(latents), chunk) for tile in tiles) + -(-latents.shape[2] // chunk)

    def stream(
        self, decode: Decode, latents: torch.Tensor, chunk: int, rate: int, nothing: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """See `DecoderSplit`; each part of a tile counts as one without frames, and then comes the video."""
        tiles, scale = self.tiling.tiles(*latents.shape[3:]), nothing.shape[3] // latents.shape[3]
        if len(tiles) == 1:
            yield from self.inner.stream(decode, latents, chunk, rate, nothing)
            return
        mosaic, rounds = None, -(-latents.shape[2] // chunk)
        for tile in tiles:
            place, first = tile.scaled(scale), 0
            for part in self.inner.stream(decode, tile.of(latents), chunk, rate, place.of(nothing)):
                if part.shape[2]:
                    if mosaic is None:
                        b, c, _, h, w = nothing.shape
                        frames = nothing.new_empty(b, c, rate * (latents.shape[2] - 1) + 1, h, w, device="cpu")
                        mosaic = Mosaic(frames, Tiling(scale * self.tiling.size, scale * self.tiling.stride))
                    mosaic.put(part, place, first)
                    first += part.shape[2]
                yield nothing
            return_freed_memory()  # else edges that are kept lie between what a tile leaves, and more with each
        if mosaic is None:  # another rank has the video
            yield from (nothing for _ in range(rounds))
            return
        yield from (part.to(nothing.device) for part in mosaic.frames.tensor_split(rounds, dim=2))


class BaseVAE(nn.Module):
    """A video autoencoder.

    `chunk` is how many latent frames go through at once: memory grows with it, not with the clip, and the result
    does not depend on it. `split` spreads decoding over ranks, and `tiling`, in pixels, cuts frames into tiles, which
    are blended: the result depends on it. Both are the loader's to set.
    """

    residence: Residence = OnDevice()
    """Where the weights are while nobody uses the model; set by the loader."""

    def __init__(self) -> None:
        super().__init__()
        self.chunk = 4
        self.split: DecoderSplit = OneRank()
        self.tiling: Tiling | None = None

    def cut(self, tiling: Tiling) -> None:
        """Work in tiles from now on.

        Raises:
            ValueError: this model has no tiles that are those of its reference.
        """
        self.tiling = tiling

    def decoder_split(self, space: int) -> DecoderSplit:
        """How a decoder is to go through latents that stand for `space` pixels a side."""
        return self.split if self.tiling is None else TiledSplit(self.tiling.over(space), self.split)
