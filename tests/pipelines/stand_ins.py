"""Models and schedulers of a few lines, which stages can be tested with."""

from typing import Any

import torch

from fastvideo.configs.sample import SamplingParam
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.encoders.base import TextEmbeddings, TextEncoder
from fastvideo.models.schedulers import Scheduler
from fastvideo.pipelines.pipeline_batch_info import Control, ForwardBatch

ARGS = FastVideoArgs(model="stand-in", device="cpu")


def make_batch(
    prompts: list[str] | None = None, negatives: list[str] | None = None, control: Control | None = None, **fields: Any
) -> ForwardBatch:
    """A request of one prompt, without guidance; `fields` are those of the sampling parameters."""
    prompts = ["a red circle"] if prompts is None else prompts
    sampling = SamplingParam(**{"guidance_scale": 1.0, "num_frames": 5, "height": 16, "width": 32, **fields})
    negatives = [""] * len(prompts) if negatives is None else negatives
    return ForwardBatch(prompts=prompts, negative_prompts=negatives, sampling=sampling, control=control or Control())


class WordEncoder(TextEncoder):
    """One token a word; every embedding is the length of the word. Padded to `text_len`."""

    def __init__(self, text_len: int = 10) -> None:
        super().__init__()
        self.text_len = text_len
        self.calls: list[list[str]] = []

    def forward(self, prompts: list[str]) -> TextEmbeddings:
        self.calls.append(list(prompts))
        lengths = [[len(word) for word in prompt.split()] for prompt in prompts]
        longest = max(map(len, lengths))
        states = torch.tensor([words + [0] * (longest - len(words)) for words in lengths]).float()[..., None]
        return TextEmbeddings(states, states[..., 0] > 0, self.text_len - longest)


class CountDown(Scheduler):
    """A scheduler whose step subtracts the prediction."""

    def __init__(self) -> None:
        self.values = torch.zeros(0)

    @property
    def timesteps(self) -> torch.Tensor:
        return self.values

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        self.values = torch.arange(num_inference_steps, 0, -1, device=device) * 100

    def step(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        return latents - prediction
