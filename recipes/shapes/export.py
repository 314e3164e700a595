"""Write the trained parts as the Diffusers-style repo that ships in the package."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from transformers import UMT5Config

from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.t5 import UMT5EncoderModel
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.training.export import save_component, save_config
from recipes.shapes import train_dit

# fp16 holds these weights more closely than bf16; at load they become fp32
DTYPE = torch.float16
WEIGHTS = "diffusion_pytorch_model.safetensors"


def export(work: Path, setup: train_dit.Setup, output: Path, vae: AutoencoderKLWan, encoder: UMT5EncoderModel) -> None:
    """Write the repo to `output`, which must not hold anything else worth keeping."""
    dit = WanTransformer3DModel(train_dit.ARCH)
    dit.load_state_dict(train_dit.trained(work, setup))
    shutil.rmtree(output, ignore_errors=True)
    save_component(dit, dit.arch.param_names_mapping, output / "transformer", WEIGHTS, DTYPE)
    save_config(dit.arch, output / "transformer", "WanTransformer3DModel")
    save_component(vae, vae.arch.param_names_mapping, output / "vae", WEIGHTS, DTYPE)
    save_config(vae.arch, output / "vae", "AutoencoderKLWan")
    save_component(encoder, encoder.arch.param_names_mapping, output / "text_encoder", "model.safetensors", DTYPE)
    _text_config(encoder).save_pretrained(output / "text_encoder")
    encoder.tokenizer.save_pretrained(output / "tokenizer")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=train_dit.SHIFT
    ).save_pretrained(output / "scheduler")
    index: dict[str, Any] = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if setup.known_frames:
        index["expand_timesteps"] = True  # the image is the first latent frame, at a timestep of its own
    (output / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _text_config(encoder: UMT5EncoderModel) -> UMT5Config:
    arch = encoder.arch
    return UMT5Config(
        architectures=["UMT5EncoderModel"],
        vocab_size=arch.vocab_size,
        d_model=arch.d_model,
        d_kv=arch.d_kv,
        d_ff=arch.d_ff,
        num_layers=arch.num_layers,
        num_heads=arch.num_heads,
        feed_forward_proj=arch.feed_forward_proj,
        layer_norm_epsilon=arch.layer_norm_epsilon,
    )
