"""The reference's models and ours from the same files, and how far apart their outputs are."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch

from fastvideo.models.loader.component_loader import load_component
from fastvideo.models.loader.repo import resolve_repo

BOUND = 1e-5
"""On `error` in fp32."""
BF16_NOISE = 1.02
"""Two ways to round the same sum differ by chance; over the samples taken here by less than this ratio."""


def write_repo(path: Path, **components: Any) -> Path:
    """A Diffusers-style repo in folder `path` of models of `diffusers` and `transformers`, by their names in it."""
    index: dict[str, Any] = {"_class_name": "WanPipeline"}
    for name, model in components.items():
        index[name] = [type(model).__module__.partition(".")[0], type(model).__name__]
        model.save_pretrained(path / name)
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def ours(repo: Path, component: str, dtype: torch.dtype = torch.float32) -> Any:
    """Our `component` of `repo`, by the loader; the tests call methods of its class."""
    return load_component(resolve_repo(repo).components[component], dtype=dtype)


def theirs(repo: Path, component: str, dtype: torch.dtype = torch.float32) -> Any:
    """The reference's `component` of `repo`."""
    library, class_name = json.loads((repo / "model_index.json").read_text())[component]
    model_class = getattr(importlib.import_module(library), class_name)
    return model_class.from_pretrained(repo, subfolder=component, torch_dtype=dtype).eval()


def error(mine: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference over the largest magnitude of `reference`, which is finite and not constant."""
    assert mine.shape == reference.shape
    assert torch.isfinite(reference).all()
    assert reference.numel() == 1 or reference.std() > 0
    return float((mine - reference).abs().max() / reference.abs().max())


def mean_square(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The mean of the squared error of (value, exact value) pairs, each relative to its exact value's."""
    errors = [(value.float() - exact).square().mean() / exact.square().mean() for value, exact in pairs]
    return float(torch.stack(errors).mean())
