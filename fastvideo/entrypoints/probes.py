"""How `fastvideo verify` runs each kind of component: ours, and the reference's, on the same inputs."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from fastvideo.models.dits.wananimate import FaceVideo
from fastvideo.models.dits.wanvace import WanVACETransformer3DModel
from fastvideo.models.encoders.image_processor import ImageProcessor

PROMPTS = ("a red circle moving left on a white background", "kite")
SEED = 11


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What both sides are given."""

    tokenizer: Any
    text_len: int
    pipeline_class: Any
    """Of the reference."""
    video: torch.Tensor
    """[2, 3, T, H, W] in [-1, 1]."""
    latents: torch.Tensor
    """[2, z, t, h, w]."""
    model_input: torch.Tensor
    """[2, C, t, h, w], of the transformer."""
    image: torch.Tensor
    """[H, W, 3] uint8."""
    states: torch.Tensor | None
    """[2, S, image_dim], what an image encoder may see; None of a transformer that is shown no image."""
    timestep: torch.Tensor
    """[2] in [0, 1000]."""
    text: torch.Tensor
    """[2, text_len, d], the second half of the rows zero."""


Outputs = dict[str, torch.Tensor]
"""By the name of the comparison."""


@dataclass(frozen=True)
class Probe:
    """How to run a kind of component: ours, and the reference's."""

    ours: Callable[[Any, Inputs], Outputs]
    reference: Callable[[Any, Inputs], Outputs]


def our_text(encoder: Any, inputs: Inputs) -> Outputs:
    """The embedded prompts, padded."""
    encoder.tokenizer, encoder.text_len = inputs.tokenizer, inputs.text_len
    embeddings = encoder(list(PROMPTS))
    return {"text encoder": F.pad(embeddings.states, (0, 0, 0, embeddings.padding))}


def reference_text(encoder: Any, inputs: Inputs) -> Outputs:
    """The same by the reference's pipeline, which cleans and pads prompts."""
    needed = [
        name for name, one in inspect.signature(inputs.pipeline_class).parameters.items() if one.default is one.empty
    ]
    given = dict.fromkeys(needed) | {"tokenizer": inputs.tokenizer, "text_encoder": encoder}
    pipeline = inputs.pipeline_class(**given)
    embedded = pipeline.encode_prompt(
        list(PROMPTS), do_classifier_free_guidance=False, max_sequence_length=inputs.text_len
    )
    return {"text encoder": embedded[0]}


def our_prediction(dit: Any, inputs: Inputs) -> Outputs:
    """The prediction; equal rows of text stand as padding."""
    length = inputs.text_len // 2
    text = inputs.text[:, :length]
    padding = inputs.text_len - length
    shown = {} if inputs.states is None else {"image": inputs.states}
    return {"transformer": dit(inputs.model_input, inputs.timestep, text=text, text_padding=padding, **shown)}


def reference_prediction(dit: Any, inputs: Inputs) -> Outputs:
    """The same, with all rows of text there."""
    given, text, states = inputs.model_input.to(dit.dtype), inputs.text.to(dit.dtype), inputs.states
    if states is not None:
        # where it tells images apart, the reference takes each by itself
        states = states if dit.config.pos_embed_seq_len is None else states.unflatten(1, (2, -1)).flatten(0, 1)
        states = states.to(dit.dtype)
    return {"transformer": dit(given, inputs.timestep, text, states, return_dict=False)[0]}


def our_plain_prediction(dit: Any, inputs: Inputs) -> Outputs:
    """The prediction without a reference image, which the reference's transformer has no place for."""
    dit.ref_conv = None
    return our_prediction(dit, inputs)


def control_for(dit: Any, latents: torch.Tensor) -> torch.Tensor:
    """Random control latents for a transformer that is steered."""
    channels: int = (
        dit.control_embedding.in_channels if isinstance(dit, WanVACETransformer3DModel) else dit.config.vace_in_channels
    )
    generator = torch.Generator("cpu").manual_seed(SEED + 1)
    return torch.randn(latents.shape[0], channels, *latents.shape[2:], generator=generator)


def our_steered(dit: Any, inputs: Inputs) -> Outputs:
    """The prediction of a transformer that is steered."""
    length = inputs.text_len // 2
    text = inputs.text[:, :length]
    control, scales = control_for(dit, inputs.model_input), [1.0] * dit.control_layers
    padding = inputs.text_len - length
    made = dit(
        inputs.model_input, inputs.timestep, text=text, text_padding=padding, control=control, control_scales=scales
    )
    return {"transformer": made}


def reference_steered(dit: Any, inputs: Inputs) -> Outputs:
    """The same, with all rows of text there."""
    given, text = inputs.model_input.to(dit.dtype), inputs.text.to(dit.dtype)
    control = control_for(dit, inputs.model_input).to(dit.dtype)
    made = dit(given, inputs.timestep, text, control_hidden_states=control, return_dict=False)[0]
    return {"transformer": made}


def motion_for(side: int, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Random latents of poses, and a face of `side` pixels, for a transformer that animates."""
    generator = torch.Generator("cpu").manual_seed(SEED + 1)
    channels, frames = (latents.shape[1] - 4) // 2, latents.shape[2] - 1
    pose = torch.randn(latents.shape[0], channels, frames, *latents.shape[3:], generator=generator)
    return pose, torch.rand(latents.shape[0], 3, 4 * frames - 3, side, side, generator=generator) * 2 - 1


def our_animated(dit: Any, inputs: Inputs) -> Outputs:
    """The prediction of a transformer that animates."""
    length = inputs.text_len // 2
    text, padding = inputs.text[:, :length], inputs.text_len - length
    pose, face = motion_for(dit.arch.motion_encoder_size, inputs.model_input)
    shown = {"image": inputs.states, "pose": pose, "face": FaceVideo(face)}
    return {"transformer": dit(inputs.model_input, inputs.timestep, text=text, text_padding=padding, **shown)}


def reference_animated(dit: Any, inputs: Inputs) -> Outputs:
    """The same, with all rows of text there."""
    assert inputs.states is not None
    pose, face = motion_for(dit.config.motion_encoder_size, inputs.model_input)
    given, *shown = (x.to(dit.dtype) for x in (inputs.model_input, inputs.text, inputs.states, pose, face))
    return {"transformer": dit(given, inputs.timestep, *shown, return_dict=False)[0]}


def our_sight(encoder: Any, inputs: Inputs) -> Outputs:
    """What the encoder sees in the image."""
    encoder.processor = ImageProcessor(size=encoder.arch.image_size, crop=(encoder.arch.image_size,) * 2)
    return {"image encoder": encoder([inputs.image])}


def reference_sight(encoder: Any, inputs: Inputs) -> Outputs:
    """The same, of the same processed pixels."""
    size = encoder.config.image_size
    pixels = ImageProcessor(size=size, crop=(size, size))(inputs.image)[None].to(encoder.dtype)
    return {"image encoder": encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]}


def our_autoencoding(vae: Any, inputs: Inputs) -> Outputs:
    """Latents of the video, and video of the latents."""
    return {"vae encode": vae.encode(inputs.video), "vae decode": vae.decode(inputs.latents)}


def reference_autoencoding(vae: Any, inputs: Inputs) -> Outputs:
    """The same, with the latents scaled as the reference's pipeline does."""
    values = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(value).view(1, -1, 1, 1, 1) for value in values)
    latents = vae.encode(inputs.video.to(vae.dtype)).latent_dist.mode()
    video = vae.decode((inputs.latents * std + mean).to(vae.dtype), return_dict=False)[0]
    return {"vae encode": (latents.float() - mean) / std, "vae decode": video}


TEXT = Probe(our_text, reference_text)
PROBES: dict[str, Probe] = {
    "T5EncoderModel": TEXT,
    "UMT5EncoderModel": TEXT,
    "CLIPVisionModel": Probe(our_sight, reference_sight),
    "WanVACETransformer3DModel": Probe(our_steered, reference_steered),
    "WanAnimateTransformer3DModel": Probe(our_animated, reference_animated),
    "WanTransformer3DModel": Probe(our_prediction, reference_prediction),
    # as long as there is nothing before it, a chunk is a clip
    "CausalWanTransformer3DModel": Probe(our_prediction, reference_prediction),
    "WanFunTransformer3DModel": Probe(our_plain_prediction, reference_prediction),
    "AutoencoderKLWan": Probe(our_autoencoding, reference_autoencoding),
}
"""By the class in `model_index.json`; each registered class has one."""
