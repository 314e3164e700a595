"""Keys and values of the frames before the ones that are made, for models that make a video chunk by chunk."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class _Kept:
    """Those of one layer, [B, window * tokens, heads, D] each, of which the first `past` frames are those before frame
    `start` of the video."""

    keys: torch.Tensor
    values: torch.Tensor
    start: int
    past: int


class RollingCache:
    """What the layers of a model see of the frames that were made.

    The frames of a chunk see each other and, of the frames before them, the first `sink` and as many of the last as
    make it `window` frames in all, their own included. So memory is bounded by the window (Self-Forcing, arXiv
    2506.08009, section 3.4; the sink is of StreamingLLM, arXiv 2309.17453).
    """

    def __init__(self, window: int, sink: int, tokens: int) -> None:
        """For frames of `tokens` tokens each, of which a layer sees at most `window`."""
        self.window = window
        self.sink = sink
        self.tokens = tokens
        self.start = 0
        """The place in the video of the frames that are being made: how many were kept before them."""
        self._layers: dict[nn.Module, _Kept] = {}

    def extend(self, layer: nn.Module, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the queries of `layer` see: keys and values [B, S, heads, D], with those of the chunk at the end.

        Args:
            layer: whose they are.
            keys: [B, L, heads, D], those of the frames that are being made. They take the place of those that an
                earlier pass over the same frames gave.
            values: the same.
        """
        frames = keys.shape[1] // self.tokens
        assert self.sink + frames <= self.window, "a chunk fits into the window beside the sink"
        kept = self._layers.get(layer)
        if kept is None:
            room = (keys.shape[0], self.window * self.tokens, *keys.shape[2:])
            kept = self._layers[layer] = _Kept(keys.new_empty(room), values.new_empty(room), start=0, past=0)
        if kept.start != self.start:
            held = kept.past + self.start - kept.start
            kept.start, kept.past = self.start, min(held, self.window - frames)
            self._forget(kept, held)
        end = (kept.past + frames) * self.tokens
        for buffer, new in ((kept.keys, keys), (kept.values, values)):
            buffer[:, kept.past * self.tokens : end] = new
        return kept.keys[:, :end], kept.values[:, :end]

    def keep(self, frames: int) -> None:
        """The last pass was over `frames` frames that are done: the next ones follow them."""
        self.start += frames

    @property
    def nbytes(self) -> int:
        """Of all layers."""
        return sum(kept.keys.nbytes + kept.values.nbytes for kept in self._layers.values())

    def _forget(self, kept: _Kept, held: int) -> None:
        """Of the `held` frames leave the oldest after the sink, so that `kept.past` remain."""
        gone = held - kept.past
        if not gone:
            return
        first, last = self.sink * self.tokens, kept.past * self.tokens
        for buffer in (kept.keys, kept.values):
            # a copy, as the places overlap
            buffer[:, first:last] = buffer[:, first + gone * self.tokens : held * self.tokens].clone()
