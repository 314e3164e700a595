"""Repos with random weights, so that a benchmark needs no download. Ours and the reference read the same files."""

import json
import math
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fastvideo.configs.models.base import ArchConfig
from fastvideo.configs.registry import SHIPPED_MODEL, find_component
from fastvideo.utils import atomic_path, resolve

GAINS = {"SelfAttention.q.": 0.125, "decoder.conv_out.": 0.3}
"""On the usual scale of a weight whose name contains one of these: an attention that does not scale its logits has the
scale in its weights, and most of a video is not clamped."""


def write_repo(
    folder: Path, configs: Mapping[str, Mapping[str, Any]], dtype: torch.dtype, device: torch.device
) -> Path:
    """A repo in `folder` with the components in `configs`, unless it is there; the same weights each time.

    A text encoder comes with the tokenizer of the model in the package, several components with its scheduler.

    Args:
        folder: is made.
        configs: the `config.json` of each component, which names its class.
        dtype: of the stored weights.
        device: where the numbers are drawn.

    Returns:
        `folder`.
    """
    if folder.exists():
        return folder
    shipped = json.loads((SHIPPED_MODEL / "model_index.json").read_text())
    copied = ["tokenizer"] if "text_encoder" in configs else []
    copied += ["scheduler"] if len(configs) > 1 else []
    index = {name: value for name, value in shipped.items() if name in ("_class_name", *configs, *copied)}
    with atomic_path(folder) as unfinished:
        unfinished.mkdir()
        (unfinished / "model_index.json").write_text(json.dumps(index))
        for name in copied:
            shutil.copytree(SHIPPED_MODEL / name, unfinished / name)
        for name, config in configs.items():
            (unfinished / name).mkdir()
            (unfinished / name / "config.json").write_text(json.dumps(dict(config)))
            # the names that the libraries look for
            stem = "model" if shipped[name][0] == "transformers" else "diffusion_pytorch_model"
            state = random_state(config, dtype, device)
            save_file(state, unfinished / name / f"{stem}.safetensors", metadata={"format": "pt"})
    return folder


def random_state(config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
    """Weights of the component that `config` describes, under the names of its checkpoints."""
    entry = find_component(config["_class_name"])
    arch: ArchConfig = resolve(entry.arch).from_dict(config)
    with torch.device("meta"):
        model: torch.nn.Module = resolve(entry.model)(arch)
    state = {}
    for name, parameter in model.state_dict().items():
        sources = arch.param_names_mapping.sources(name)
        for source in sources:
            shape = (parameter.shape[0] // len(sources), *parameter.shape[1:])
            state[source] = random_weight(source, shape, device).to(dtype)
    return state


def random_weight(name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Numbers drawn from the weight's name: a matrix or kernel keeps the variance of what goes through, what scales
    lies around 1, a bias around 0."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    normal = torch.randn(shape, generator=generator, device=device)
    fan_in = math.prod(shape[1:])
    if fan_in > 1:
        gain = math.prod(gain for part, gain in GAINS.items() if part in name)
        return normal * gain * fan_in**-0.5
    return normal * 0.02 if name.endswith("bias") else 1 + 0.1 * normal
