"""Small folders of the Wan models of VideoX-Fun, in its layout, and the Diffusers repos that their weights are from."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.official_repos import OFFICIAL_ENCODER, official_config, official_state
from tests.tiny_repos import (
    RESIDUAL_VAE,
    make_i2v_repo,
    make_scheduler,
    make_text_encoder,
    make_tokenizer,
    make_transformer,
    make_vae,
)


class Fun(NamedTuple):
    """A kind of model."""

    pipeline_class: str
    in_channels: int
    referred: bool = False
    """Whether it has a place for a reference image."""


KINDS = {
    "inp": Fun("WanFunInpaintPipeline", 36),
    "control": Fun("WanFunControlPipeline", 48, referred=True),
    "control-1.0": Fun("WanFunControlPipeline", 48),
    "22-inp": Fun("Wan2_2FunInpaintPipeline", 36),
    "22-control": Fun("Wan2_2FunControlPipeline", 52, referred=True),
    "5b-inp": Fun("Wan2_2FunInpaintPipeline", 100),
    "5b-control": Fun("Wan2_2FunControlPipeline", 148, referred=True),
}


def source_of(path: Path) -> Path:
    """The Diffusers repo with the weights of the folder `path`, apart from those for reference images."""
    return path.with_name(f"{path.name}-diffusers")


def make_source(path: Path, kind: str, seed: int) -> Path:
    """Models of a kind as `diffusers` saves them."""
    fun = KINDS[kind]
    channels: dict[str, Any] = {"in_channels": fun.in_channels}
    if not kind.startswith(("22", "5b")):
        return make_i2v_repo(path, seed=seed, transformer=channels, image_encoder=OFFICIAL_ENCODER)
    small = kind.startswith("5b")
    tokenizer = make_tokenizer()
    parts = {
        "text_encoder": make_text_encoder(len(tokenizer), seed=5 * seed),
        "transformer": make_transformer(5 * seed + 1, **channels, out_channels=48 if small else 16),
        "vae": make_vae(5 * seed + 2, **(RESIDUAL_VAE if small else {})),
        "scheduler": make_scheduler("euler", 5.0),
        "tokenizer": tokenizer,
    }
    if not small:
        parts["transformer_2"] = make_transformer(5 * seed + 3, **channels)
    for name, part in parts.items():
        part.save_pretrained(path / name)
    if small:
        classes = {
            name: [
                "transformers" if name.startswith("t") and name != "transformer" else "diffusers",
                type(part).__name__,
            ]
            for name, part in parts.items()
        }
        index = {"_class_name": "WanPipeline", "expand_timesteps": True, **classes}
        (path / "model_index.json").write_text(json.dumps(index))
    return path


def reference_weights(kind: str, component: str) -> dict[str, torch.Tensor]:
    """The patch embedding of reference images."""
    generator = torch.Generator().manual_seed(len(component))
    channels = 48 if kind.startswith("5b") else 16
    shapes = {"ref_conv.weight": (60, channels, 2, 2), "ref_conv.bias": (60,)}
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def make_fun_repo(path: Path, kind: str, seed: int = 0) -> Path:
    """A folder of a kind in `KINDS`, as VideoX-Fun publishes it. Where a config says no more than that of a plain
    model, `model_index.json` names the pipeline.

    Returns:
        `path`.
    """
    from safetensors.torch import save_file

    fun, source = KINDS[kind], make_source(source_of(path), kind, seed)
    folders = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}
    for component, folder in folders.items() if kind.startswith("22") else {"transformer": ""}.items():
        (path / folder).mkdir(parents=True, exist_ok=True)
        config = json.loads(official_config(source, component, "i2v"))
        config |= {"in_channels": 16, "hidden_size": config["dim"], "add_ref_conv": fun.referred}
        (path / folder / "config.json").write_text(json.dumps(config))
        state = official_state(source, component)
        if fun.referred:
            state |= reference_weights(kind, component)
        save_file(state, path / folder / "diffusion_pytorch_model.safetensors")
    torch.save(official_state(source, "text_encoder"), path / "models_t5_umt5-xxl-enc-bf16.pth")
    vae = "Wan2.2_VAE.pth" if kind.startswith("5b") else "Wan2.1_VAE.pth"
    torch.save(official_state(source, "vae"), path / vae)
    if not kind.startswith(("22", "5b")):
        state = official_state(source, "image_encoder")
        state["visual.cls_embedding"] = state["visual.cls_embedding"][None, None]
        state["visual.pos_embedding"] = state["visual.pos_embedding"][None]
        state["visual.transformer.2.norm1.weight"] = torch.ones(160)  # of the last layer, which nobody looks at
        torch.save(state, path / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    make_tokenizer().save_pretrained(path / "google" / "umt5-xxl")
    if fun.in_channels == 36:
        (path / "model_index.json").write_text(json.dumps({"_class_name": fun.pipeline_class}))
    return path
