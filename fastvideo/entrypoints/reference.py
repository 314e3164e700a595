"""The reference, `diffusers` and `transformers`, on the files of a repo that FastVideo loads."""

import dataclasses
import importlib
import importlib.util
import inspect
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastvideo.configs.registry import find_component
from fastvideo.configs.sample.base import OPTIONS, SamplingParam
from fastvideo.models.loader.checkpoint import stream_tensors
from fastvideo.models.loader.component_loader import Blueprint, load_tokenizer
from fastvideo.models.loader.gguf_source import prefix_of
from fastvideo.models.loader.repo import Repo
from fastvideo.models.loader.weights import checkpoint_state, module_state
from fastvideo.models.schedulers import SCHEDULERS
from fastvideo.utils import resolve

PACKAGES = ("accelerate", "diffusers", "transformers")
LIBRARIES = ("diffusers", "transformers")


def check_packages() -> None:
    """Check that the reference can be run.

    Raises:
        ImportError: a package is missing; says what to install.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"verify needs {', '.join(missing)}: pip install 'fastvideo[verify]'")


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block neither library draws progress bars or warns."""
    found = [importlib.import_module(f"{library}.utils.logging") for library in LIBRARIES]
    before = [(module.get_verbosity(), module.is_progress_bar_enabled()) for module in found]
    for module in found:
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, (verbosity, bars) in zip(found, before, strict=True):
            module.set_verbosity(verbosity)
            if bars:
                module.enable_progress_bar()


def load_reference(plan: Blueprint, dtype: torch.dtype) -> Any:
    """The reference's model of the same files.

    Of an official checkpoint it is made by the reference's own translation of names where it has one.
    """
    source = plan.source
    class_name = find_component(source.class_name).reference or source.class_name
    model_class = resolve(f"{source.library}:{class_name}")
    kwargs = {"diffusers": {"torch_dtype": dtype}, "transformers": {"dtype": dtype}}[source.library]
    if not source.official:
        return model_class.from_pretrained(source.local_folder(), local_files_only=True, **kwargs).eval()
    config = dataclasses.asdict(plan.arch)
    prefix, shapes = prefix_of(source), {name: one.shape for name, one in plan.model.state_dict().items()}
    tensors = {}
    for name, tensor in stream_tensors(source.weight_files, source.header()):
        target = plan.mapping(name)
        if name.startswith(prefix):
            # the authors' tensors may begin with dimensions of one, or be flat where the model's are not
            whole = target is not None and target.parts == 1
            tensors[name.removeprefix(prefix)] = tensor.reshape(shapes[target.name]) if target and whole else tensor
    if source.library == "transformers":
        state = checkpoint_state(module_state(tensors, plan.mapping), plan.arch.param_names_mapping)
        return model_class.from_pretrained(
            None, config=model_class.config_class(**config), state_dict=state, **kwargs
        ).eval()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"_class_name": source.class_name, **config}))
        return model_class.from_single_file(tensors, config=folder, local_files_only=True, **kwargs).eval()


def reference_pipeline(repo: Repo) -> Any:
    """The reference's pipeline class for `repo`; None when it has none, or one for other components."""
    known = getattr(importlib.import_module("diffusers"), repo.entry.pipeline_class, None)
    if known is None:
        return None
    takes = inspect.signature(known.__init__).parameters
    schedulers = [source.class_name for name, source in repo.components.items() if name.startswith("scheduler")]
    own = any(SCHEDULERS[name].reference is None for name in schedulers)
    return None if own or not set(repo.components) <= set(takes) else known


def reference_video(
    repo: Repo, plans: list[Blueprint], prompt: str, sampling: SamplingParam, text_len: int, shown: dict[str, Any]
) -> torch.Tensor:
    """The video [1, 3, T, H, W] in [0, 1] that the reference's pipeline makes in fp32 of `prompt`, with text padded to
    `text_len` tokens, and of the images `shown`."""
    components: dict[str, Any] = {plan.source.name: load_reference(plan, torch.float32) for plan in plans}
    for name, source in repo.components.items():
        if name.startswith("scheduler"):
            components[name] = resolve(f"{source.library}:{source.class_name}").from_config(dict(source.config))
        elif name.startswith("tokenizer"):
            components[name] = load_tokenizer(source)
        elif name.startswith("image_processor"):
            components[name] = resolve(f"transformers:{source.class_name}").from_dict(dict(source.config))
    options = {name: value for name, value in repo.model_index.items() if not name.startswith("_")}
    pipeline = reference_pipeline(repo)(**components, **options)
    pipeline.set_progress_bar_config(disable=True)
    shared = ("negative_prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale")
    given = [*shared, *(name for name in OPTIONS if getattr(sampling, name) is not None)]
    if "num_frames" not in inspect.signature(pipeline.__call__).parameters:
        given.remove("num_frames")  # it makes as many as it is given
    made = pipeline(
        prompt=prompt,
        generator=torch.Generator("cpu").manual_seed(sampling.seed),
        max_sequence_length=text_len,
        output_type="np",
        **{name: getattr(sampling, name) for name in given},
        **shown,
    )
    return torch.from_numpy(made.frames).permute(0, 4, 1, 2, 3)
