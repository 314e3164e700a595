"""What a clip's file says about itself: enough to make the same clip again, and to see why one differs."""

import platform
from collections.abc import Collection
from contextlib import suppress
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from fastvideo import __version__
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.pipelines.pipeline_batch_info import BlockRuns

NOT_CONTENT = ("output_path", "save_video", "return_frames")
"""Sampling fields that say where a clip goes, not what it shows."""

SHARING = ("num_gpus", "tp_size", "ulysses_size", "ring_size", "cfg_size", "use_fsdp_inference")
"""Engine options that say how devices share the work, on which the order of additions depends."""

SPARSITY = ("VSA_sparsity", "STA_window", "STA_tile_size", "mask_strategy_file_path", "moba_config")
"""Engine options of the attention backends that leave keys out."""

PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "numpy", "av", "ftfy")
"""Distributions whose version can change a pixel."""
QUANTIZERS = ("torchao",)
"""Those that do where weights are quantized."""


def clip_metadata(
    *,
    prompt: str,
    sampling: SamplingParam,
    index: int,
    args: FastVideoArgs,
    weights: dict[str, str],
    pipeline_config: PipelineConfig,
    attention_backend: str,
    device: str,
    threads: int,
    block_runs: BlockRuns,
    inputs: dict[str, str] | None = None,
    lora: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata of the clip that is number `index` of the `num_videos_per_prompt` of one prompt.

    Args:
        weights: the SHA-256 of each weight file of the model, by its path in the repo.
        pipeline_config: as it was used; a field of it that a user changed changes the clip.
        attention_backend: the one that ran, not the one that was asked for.
        device: the type of the one that ran.
        threads: of torch on the CPU, as the order of additions depends on them.
        block_runs: how many the clip took, and how many were saved; for whoever reads it.
        inputs: the SHA-256 of the pixels of each image or video that the model was shown, by its name.
        lora: the adapters that worked, with the hashes of their files.
    """
    request = {name: plain(value) for name, value in sampling.to_dict().items() if name not in NOT_CONTENT}
    return {
        "fastvideo": __version__,
        "request": {"prompt": prompt, **request},
        "index": index,
        "inputs": inputs or {},
        "model": {"name": args.model, "revision": args.revision, "weights": weights},
        "lora": lora,
        "pipeline_config": pipeline_config.to_dict(),
        "precision": args.precision,
        "attention_backend": attention_backend,
        "attention_options": {name: getattr(args, name) for name in SPARSITY},
        "enable_torch_compile": args.enable_torch_compile,
        "torch_compile_kwargs": args.torch_compile_kwargs,
        "quantization": args.quantization,
        "text_encoder_quantization": args.text_encoder_quantization,
        "weight_paths": args.weight_paths,
        "device": device,
        "devices": {name: getattr(args, name) for name in SHARING},
        "threads": threads,
        "block_runs": block_runs._asdict(),
        "versions": versions(QUANTIZERS if args.quantized else ()),
    }


def plain(value: Any) -> Any:
    """`value` with paths as text, as JSON has them."""
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def versions(others: Collection[str] = ()) -> dict[str, str]:
    """The versions of everything that computes, and of those of `QUANTIZERS` that are in `others` and are there."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        found[name] = installed.version(name)
    for name in QUANTIZERS:
        if name in others:
            with suppress(installed.PackageNotFoundError):
                found[name] = installed.version(name)
    return found
