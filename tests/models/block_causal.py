"""Causal Wan restated without a cache: the reference's transformer over the whole clip, under a mask."""

from typing import Any

import torch


def mask(frames: int, chunk: int, window: int, sink: int, tokens: int, first: int = 0) -> torch.Tensor:
    """Which of `frames` * `tokens` keys each query sees, [L, L].

    The frames of a chunk see the frames up to the chunk's end; of those the first `sink`, and the last such that it is
    `window` in all. There may be a chunk of `first` frames before the others.
    """
    frame = torch.arange(frames)
    end = (((frame - first) // chunk + 1) * chunk + first)[:, None]
    seen = (frame < end) & ((frame >= end - (window - sink)) | (frame < sink))
    return seen.repeat_interleave(tokens, dim=0).repeat_interleave(tokens, dim=1)


def predict(
    transformer: Any, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """What the transformer of `diffusers` says of the clip `latents` [B, C, T, H, W], whose frames have `timesteps` [T]
    each, when its queries see the keys of `seen` [L, L] alone."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    plain = WanAttnProcessor()

    def masked(attn: Any, x: torch.Tensor, states: Any = None, attention_mask: Any = None, rotary: Any = None) -> Any:
        return plain(attn, x, states, seen, rotary)

    for block in transformer.blocks:
        block.attn1.set_processor(masked)
    tokens = seen.shape[0] // latents.shape[2]
    each = timesteps.repeat_interleave(tokens).expand(len(latents), -1)
    made: torch.Tensor = transformer(latents, each, text, return_dict=False)[0]
    return made
