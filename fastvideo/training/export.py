"""Write a trained module as a component of a Diffusers-style repo."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from fastvideo.configs.models.base import ParamNamesMapping
from fastvideo.models.loader.weights import checkpoint_state


def save_component(
    module: nn.Module, mapping: ParamNamesMapping, folder: Path, file_name: str, dtype: torch.dtype
) -> None:
    """Write the weights in `dtype` to `folder / file_name`, a safetensors file, under the checkpoint's names."""
    folder.mkdir(parents=True, exist_ok=True)
    state = checkpoint_state(module.state_dict(), mapping)
    tensors = {name: tensor.to(dtype) for name, tensor in state.items()}
    save_file(tensors, folder / file_name, metadata={"format": "pt"})


def save_config(arch: Any, folder: Path, class_name: str, **extra: Any) -> None:
    """Write `config.json` with the fields of `arch`, a dataclass, under their names in Diffusers repos."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": class_name, **dataclasses.asdict(arch), **extra}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
