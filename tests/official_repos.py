"""Small repos in the layouts of their authors, with the weights of those in `tiny_repos`."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.tiny_repos import make_tokenizer, make_wan_repo

OFFICIAL_ENCODER = {"hidden_size": 160, "num_attention_heads": 2, "image_size": 224, "patch_size": 56}
"""Of `make_image_encoder`: what an official folder implies is as there, 80 numbers a head and images of 224 pixels."""


def make_official_repo(path: Path, seed: int = 0, **options: Any) -> Path:
    """A flat folder as the Wan authors publish it, with the weights of `make_wan_repo(..., seed=seed, **options)`.

    The names are made by reading `official_param_names_mapping` backwards: `.safetensors` for the transformer, `.pth`
    for the text encoder and the VAE.

    Returns:
        `path`.
    """
    from safetensors.torch import save_file

    from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig

    source = make_wan_repo(path.with_name(path.name + "-diffusers"), seed=seed, **options)
    path.mkdir(parents=True, exist_ok=True)
    raw = json.loads((source / "transformer" / "config.json").read_text())
    arch = WanVideoArchConfig.from_dict(raw)
    config = {
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": "t2v", "text_len": 512,
        "dim": arch.hidden_size, "num_heads": arch.num_attention_heads, "ffn_dim": arch.ffn_dim,
        "freq_dim": arch.freq_dim, "in_dim": arch.in_channels, "out_dim": arch.out_channels,
        "num_layers": arch.num_layers, "eps": arch.eps,
    }  # fmt: skip
    if arch.text_dim != 4096:
        config["text_dim"] = arch.text_dim
    (path / "config.json").write_text(json.dumps(config, indent=2))
    save_file(official_state(source, "transformer"), path / "diffusion_pytorch_model.safetensors")
    torch.save(official_state(source, "text_encoder"), path / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(official_state(source, "vae"), path / "Wan2.1_VAE.pth")
    make_tokenizer().save_pretrained(path / "google" / "umt5-xxl")
    return path


def make_official_i2v_repo(path: Path, source: Path, last: bool = False) -> Path:
    """A flat folder as the Wan authors publish it, with the weights of `source` from `make_i2v_repo`, whose
    `image_encoder` is `OFFICIAL_ENCODER`.

    Returns:
        `path`.
    """
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    (path / "config.json").write_text(official_config(source, "transformer", "flf2v" if last else "i2v"))
    save_file(official_state(source, "transformer"), path / "diffusion_pytorch_model.safetensors")
    torch.save(official_state(source, "text_encoder"), path / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(official_state(source, "vae"), path / "Wan2.1_VAE.pth")
    state = official_state(source, "image_encoder")
    state["visual.cls_embedding"] = state["visual.cls_embedding"][None, None]
    state["visual.pos_embedding"] = state["visual.pos_embedding"][None]
    state |= {"log_scale": torch.ones(()), "visual.head": torch.ones(160, 8), "textual.head.weight": torch.ones(3)}
    state["visual.transformer.2.norm1.weight"] = torch.ones(160)
    torch.save(state, path / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    make_tokenizer().save_pretrained(path / "google" / "umt5-xxl")
    return path


def make_official_22_repo(path: Path, source: Path, model_type: str) -> Path:
    """A folder of Wan 2.2 as its authors publish it, with the weights of `source`; `model_type` t2v, i2v or ti2v.

    Returns:
        `path`.
    """
    from safetensors.torch import save_file

    folders = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}
    for component, folder in {"transformer": ""}.items() if model_type == "ti2v" else folders.items():
        (path / folder).mkdir(parents=True)
        (path / folder / "config.json").write_text(official_config(source, component, model_type))
        state = official_state(source, component)
        save_file(state, path / folder / "diffusion_pytorch_model.safetensors")
    torch.save(official_state(source, "text_encoder"), path / "models_t5_umt5-xxl-enc-bf16.pth")
    vae = "Wan2.2_VAE.pth" if model_type == "ti2v" else "Wan2.1_VAE.pth"
    torch.save(official_state(source, "vae"), path / vae)
    make_tokenizer().save_pretrained(path / "google" / "umt5-xxl")
    return path


def make_official_vace_repo(path: Path, source: Path) -> Path:
    """A flat folder of VACE as the Wan authors publish it, with the weights of `source`.

    Returns:
        `path`.
    """
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    config = json.loads(official_config(source, "transformer", "vace"))
    own = json.loads((source / "transformer" / "config.json").read_text())
    config |= {"_class_name": "VaceWanModel", "vace_layers": own["vace_layers"], "vace_in_dim": own["vace_in_channels"]}
    (path / "config.json").write_text(json.dumps(config))
    save_file(official_state(source, "transformer"), path / "diffusion_pytorch_model.safetensors")
    torch.save(official_state(source, "text_encoder"), path / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(official_state(source, "vae"), path / "Wan2.1_VAE.pth")
    make_tokenizer().save_pretrained(path / "google" / "umt5-xxl")
    return path


def make_official_animate_repo(path: Path, source: Path) -> Path:
    """A flat folder of Animate as the Wan authors publish it, with the weights of `source`, whose `image_encoder` is
    `OFFICIAL_ENCODER`.

    Returns:
        `path`.
    """
    from safetensors.torch import save_file

    make_official_i2v_repo(path, source)
    raw = json.loads((path / "config.json").read_text())
    own = {"use_img_emb": True, "use_context_parallel": False, "motion_encoder_dim": 512}
    del raw["model_type"]
    (path / "config.json").write_text(json.dumps({**raw, "_class_name": "WanAnimateModel", **own}))
    # the blurs are buffers there, and biases have as many dimensions as images
    state = official_state(source, "transformer")
    net = "motion_encoder.enc.net_app.convs"
    state = {name: x[None] if name.startswith(net) and x.ndim == 3 else x for name, x in state.items()}
    state |= {f"{net}.{number}.{name}.0.kernel": torch.ones(4, 4) for number in (1, 2) for name in ("conv2", "skip")}
    save_file(state, path / "diffusion_pytorch_model.safetensors")
    return path


def official_config(source: Path, component: str, model_type: str) -> str:
    """The `config.json` that the Wan authors would have written of a transformer of Diffusers repo `source`."""
    config = json.loads((source / component / "config.json").read_text())
    names = {"num_attention_heads": "num_heads", "in_channels": "in_dim", "out_channels": "out_dim"}
    same = ("ffn_dim", "freq_dim", "num_layers", "eps", "text_dim")
    values = {names.get(name, name): config[name] for name in (*names, *same)}
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    return json.dumps({"_class_name": "WanModel", "model_type": model_type, "text_len": 512, "dim": dim, **values})


def official_state(repo: Path, component: str) -> dict[str, torch.Tensor]:
    """The state dict of `component` of a Diffusers repo, in one file, under the authors' names."""
    from safetensors.torch import load_file

    from fastvideo.configs.models.base import ArchConfig
    from fastvideo.configs.models.dits.wananimate import WanAnimateArchConfig
    from fastvideo.configs.models.dits.wanvace import WanVACEArchConfig
    from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig
    from fastvideo.configs.models.encoders.clip import CLIPVisionArchConfig
    from fastvideo.configs.models.encoders.t5 import UMT5ArchConfig
    from fastvideo.configs.models.vaes.wanvae import WanVAEArchConfig
    from fastvideo.models.loader.weights import checkpoint_state, module_state

    arch_classes: dict[str, type[ArchConfig]] = {
        "transformer": WanVideoArchConfig, "text_encoder": UMT5ArchConfig, "vae": WanVAEArchConfig,
        "image_encoder": CLIPVisionArchConfig, "transformer_2": WanVideoArchConfig,
    }  # fmt: skip
    folder = repo / component
    raw = json.loads((folder / "config.json").read_text())
    arch_class = WanVACEArchConfig if "vace_layers" in raw else arch_classes[component]
    arch_class = WanAnimateArchConfig if "motion_dim" in raw else arch_class
    arch = arch_class.from_dict(raw)
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    official = arch.official_param_names_mapping
    assert official is not None
    return checkpoint_state(module_state(state, arch.param_names_mapping), official)
