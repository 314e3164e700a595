"""Our pipeline and the reference's on the same repo and request, for every pipeline of the Wan family."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastvideo.configs.sample import SamplingParam
from fastvideo.entrypoints.media_inputs import read_media
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.utils import resolve

LEVEL = 1 / 255
CAT = "a red cat walks over the sea"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def film(width: int, height: int, frames: int, seed: int = 0) -> list[Image.Image]:
    """A video that goes from one picture to another."""
    first, last = picture(width, height, seed), picture(width, height, seed + 1)
    return [Image.blend(first, last, number / max(1, frames - 1)) for number in range(frames)]


def load(repo: Path, precision: str = "fp32", **options: Any) -> ComposedPipelineBase:
    """Our pipeline on the CPU, as the registry has it; `options` are those of the engine."""
    resolved = resolve_repo(repo)
    args = FastVideoArgs(model=str(repo), precision=precision, device="cpu", **options)
    pipeline_class: type[ComposedPipelineBase] = resolve(resolved.entry.pipeline)
    config = resolve(resolved.entry.pipeline_config)()
    config.flow_shift = None
    return pipeline_class.from_repo(resolved, args, args.resolved_pipeline_config(config))


def load_reference(repo: Path, class_name: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The reference's pipeline, of the class in the index or of another that takes the same components."""
    import diffusers

    name = class_name or json.loads((repo / "model_index.json").read_text())["_class_name"]
    pipeline = getattr(diffusers, name).from_pretrained(repo, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ours(
    pipeline: ComposedPipelineBase, prompts: list[str], negatives: list[str], media: dict[str, Any], **fields: Any
) -> torch.Tensor:
    """The videos [B, 3, T, H, W] of one batch."""
    sampling = SamplingParam(**{"image_fit": "stretch", **fields})
    batch = ForwardBatch(
        prompts=prompts, negative_prompts=negatives, sampling=sampling, media=read_media(sampling, media)
    )
    video = pipeline.forward(batch).video
    assert video is not None
    return video


def theirs(pipeline: Any, prompts: list[str] | str, negatives: list[str] | str, **fields: Any) -> torch.Tensor:
    """The same from the reference."""
    generator = torch.Generator("cpu").manual_seed(fields.pop("seed"))
    made = pipeline(prompt=prompts, negative_prompt=negatives, generator=generator, output_type="np", **fields)
    return torch.from_numpy(made.frames).permute(0, 4, 1, 2, 3)


def difference(mine: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference of any pixel, of videos in [0, 1] of one shape that are not blank."""
    assert mine.shape == reference.shape
    assert reference.std() > 0.01
    return float((mine - reference).abs().max())


def request(**fields: Any) -> dict[str, Any]:
    """A small request."""
    small = {
        "height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 3, "guidance_scale": 4.0, "seed": 3,
    }  # fmt: skip
    return {**small, **fields}
