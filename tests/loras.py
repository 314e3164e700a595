"""Small LoRAs with random weights for `tests/tiny_repos.py`'s models, in every spelling in use.

`RANK` and `ALPHA` differ, so that a scale that is left out shows.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK, ALPHA = 3, 6.0
LINEAR = {
    **{f"attn1.{diffusers}": f"self_attn.{official}" for diffusers, official in
       (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))},
    **{f"attn2.{diffusers}": f"cross_attn.{official}" for diffusers, official in
       (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}  # fmt: skip
"""The linear layers of a block: their names in `diffusers`, and the authors'."""
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def sizes(dim: int = 60, ffn: int = 100) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each of the linear layers of a block."""
    return {name: (dim, ffn) if "net.0" in name else (ffn, dim) if "net.2" in name else (dim, dim) for name in LINEAR}


def make_pairs(
    seed: int, layers: int = 3, names: Iterable[str] = LINEAR, rank: int = RANK, size: float = 0.3, dim: int = 60
) -> Pairs:
    """Down [r, in] and up [out, r] of linear layers in all blocks, by their names in `diffusers`."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for layer in range(layers):
        for name in names:
            wide, tall = sizes(dim)[name]
            down = size * torch.randn(rank, wide, generator=generator)
            pairs[f"blocks.{layer}.{name}"] = (down, size * torch.randn(tall, rank, generator=generator))
    return pairs


def official(name: str) -> str:
    """A layer's name among the authors' own."""
    _, number, rest = name.split(".", 2)
    return f"blocks.{number}.{LINEAR[rest]}"


def peft(pairs: Pairs, prefix: str = "transformer.", adapter: str = "") -> dict[str, torch.Tensor]:
    """As `diffusers` and `peft` write them."""
    return {
        f"{prefix}{name}.lora_{letter}.{adapter}weight": tensor
        for name, pair in pairs.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }


def comfy(pairs: Pairs, alpha: float | None = ALPHA, prefix: str = "diffusion_model.") -> dict[str, torch.Tensor]:
    """With the authors' names, for ComfyUI."""
    state = {}
    for name, (down, up) in pairs.items():
        state |= {f"{prefix}{official(name)}.lora_down.weight": down, f"{prefix}{official(name)}.lora_up.weight": up}
        if alpha is not None:
            state[f"{prefix}{official(name)}.alpha"] = torch.tensor(alpha)
    return state


def kohya(pairs: Pairs, alpha: float = ALPHA) -> dict[str, torch.Tensor]:
    """As kohya's trainers write them."""
    state = {}
    for key, tensor in comfy(pairs, alpha, prefix="").items():
        layer = next(official(name) for name in pairs if key.startswith(f"{official(name)}."))
        state["lora_unet_" + layer.replace(".", "_") + key.removeprefix(layer)] = tensor
    return state


def write(path: Path, state: dict[str, torch.Tensor], **settings: Any) -> str:
    """Save `state`, with `settings` as `diffusers` notes them; the file's name."""
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata if settings else None)
    return str(path)
