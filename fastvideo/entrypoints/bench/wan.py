"""How the components of Wan 2.1 are run, ours and the reference's, on the same inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fastvideo.entrypoints.bench import wan_cases
from fastvideo.entrypoints.bench.records import OURS
from fastvideo.entrypoints.bench.wan_cases import TEXT_ROWS
from fastvideo.entrypoints.reference import quiet
from fastvideo.entrypoints.video_generator import VideoGenerator

PROMPT_ROWS = 128
"""Rows of text that are a prompt; the rest are padding, which is zero."""

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of component case."""

    component: str
    """Its name in `model_index.json`."""
    flops: Callable[[Mapping[str, Any], tuple[int, ...]], float]
    inputs: Callable[[Mapping[str, Any], tuple[int, ...], torch.Generator], Inputs]
    """What goes in, on the CPU in fp32, of config and shape."""
    ours: Callable[[Any, Inputs], torch.Tensor]
    """Run our model."""
    reference: Callable[[Any, Inputs], torch.Tensor]
    """Run the reference's; the same result."""
    compiled: Callable[[Any], Any]
    """The reference's model, compiled."""
    first: Callable[[Inputs, int], Inputs] | None = None
    """Of the inputs, those that give the first frames alone, of a video of so many."""


def compile_all(model: Any) -> Any:
    """The whole model as one graph, in the default mode, for these shapes."""
    return torch.compile(model, dynamic=False)


def dit_inputs(config: Mapping[str, Any], shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """Latents [1, C, t, h, w], a timestep and the text of a prompt."""
    return {
        "latents": torch.randn(1, config["in_channels"], *shape, generator=generator),
        "timestep": torch.tensor([500.0]),
        "text": torch.randn(1, PROMPT_ROWS, config["text_dim"], generator=generator),
    }


def our_prediction(model: Any, inputs: Inputs) -> torch.Tensor:
    """As the pipeline calls it: one row of text stands for all padding."""
    padding = TEXT_ROWS - PROMPT_ROWS
    return model(inputs["latents"], inputs["timestep"], text=inputs["text"], text_padding=padding)


def reference_prediction(model: Any, inputs: Inputs) -> torch.Tensor:
    """As the pipeline calls it: with all rows of text."""
    latents, text = inputs["latents"].to(model.dtype), inputs["text"].to(model.dtype)
    text = F.pad(text, (0, 0, 0, TEXT_ROWS - PROMPT_ROWS))
    return model(latents, inputs["timestep"], text, return_dict=False)[0]


def decode_inputs(config: Mapping[str, Any], shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """The latents of a video of `shape` (frames, height, width)."""
    grid = 1 + (shape[0] - 1) // 4, shape[1] // 8, shape[2] // 8
    return {"latents": torch.randn(1, config["z_dim"], *grid, generator=generator)}


def our_video(model: Any, inputs: Inputs) -> torch.Tensor:
    """The decoded video."""
    return model.decode(inputs["latents"])


def reference_video(model: Any, inputs: Inputs) -> torch.Tensor:
    """The same, with the latents scaled as the pipeline does."""
    mean, std = _statistics(model, inputs["latents"].device)
    return model.decode((inputs["latents"] * std + mean).to(model.dtype), return_dict=False)[0]


def compile_decoder(model: Any) -> Any:
    """What the reference runs for each latent frame: the loop around it would be unrolled into one graph."""
    model.decoder = torch.compile(model.decoder, dynamic=False)
    return model


def encode_inputs(config: Mapping[str, Any], shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """A video [1, 3, T, H, W] in [-1, 1]."""
    return {"video": torch.rand(1, 3, *shape, generator=generator) * 2 - 1}


def our_latents(model: Any, inputs: Inputs) -> torch.Tensor:
    """The encoded video."""
    return model.encode(inputs["video"])


def reference_latents(model: Any, inputs: Inputs) -> torch.Tensor:
    """The same, scaled as the pipeline does."""
    mean, std = _statistics(model, inputs["video"].device)
    latents = model.encode(inputs["video"].to(model.dtype)).latent_dist.mode()
    return (latents.float() - mean) / std


def compile_encoder(model: Any) -> Any:
    """What the reference runs for each four frames."""
    model.encoder = torch.compile(model.encoder, dynamic=False)
    return model


def _statistics(model: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    values = (model.config.latents_mean, model.config.latents_std)
    mean, std = (torch.tensor(value, device=device).view(1, -1, 1, 1, 1) for value in values)
    return mean, std


def text_inputs(config: Mapping[str, Any], shape: tuple[int, ...], generator: torch.Generator) -> Inputs:
    """Tokens [1, S], none of them padding."""
    return {"ids": torch.randint(config["vocab_size"], (1, *shape), generator=generator)}


def our_states(model: Any, inputs: Inputs) -> torch.Tensor:
    """The last hidden states."""
    return model.hidden_states(inputs["ids"])


def reference_states(model: Any, inputs: Inputs) -> torch.Tensor:
    """The same; the pipeline gives it a mask too."""
    return model(inputs["ids"], torch.ones_like(inputs["ids"])).last_hidden_state


def load_repo(folder: Path, device: str, peer: str) -> Any:
    """The whole of a repo in bf16, as users load it: ours or the reference's."""
    if peer == OURS:
        return VideoGenerator.from_pretrained(folder, device=device, precision="bf16")
    from diffusers import WanPipeline

    with quiet():
        return WanPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).to(device)


KINDS: dict[str, Kind] = {
    "dit": Kind(
        component="transformer", flops=wan_cases.dit_flops, inputs=dit_inputs, ours=our_prediction,
        reference=reference_prediction, compiled=compile_all,
    ),
    "vae-decode": Kind(
        component="vae", flops=wan_cases.decode_flops, inputs=decode_inputs, ours=our_video,
        reference=reference_video, compiled=compile_decoder,
        first=lambda inputs, frames: {"latents": inputs["latents"][:, :, : 1 + (frames - 1) // 4]},
    ),
    "vae-encode": Kind(
        component="vae", flops=wan_cases.encode_flops, inputs=encode_inputs, ours=our_latents,
        reference=reference_latents, compiled=compile_encoder,
        first=lambda inputs, frames: {"video": inputs["video"][:, :, :frames]},
    ),
    "text-encoder": Kind(
        component="text_encoder", flops=wan_cases.text_flops, inputs=text_inputs, ours=our_states,
        reference=reference_states, compiled=compile_all,
    ),
}  # fmt: skip
