"""Pipelines whose transformer is given more than text, on two processes against one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.configs.sample import SamplingParam
from fastvideo.distributed.groups import ONE_RANK, Groups, build_groups
from fastvideo.distributed.layout import Layout
from fastvideo.entrypoints.media_inputs import read_media
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.utils import resolve
from tests.distributed.processes import Processes
from tests.pipelines.wan_pairs import film, picture

LEVEL = 1 / 255
MEDIA: dict[str, dict[str, Any]] = {
    "i2v": {"image": picture(30, 50)},
    "ti2v": {"image": picture(30, 50)},
    "vace": {"video": film(64, 32, 9), "reference_images": [picture(30, 50)]},
    "wan22": {},
}


def generate(repo: Path, groups: Groups, media: dict[str, Any]) -> torch.Tensor:
    """The video [1, 3, T, H, W]; on ranks after the first it has no frames."""
    resolved = resolve_repo(repo)
    args = FastVideoArgs(model=str(repo), precision="fp32", device="cpu")
    pipeline: type[ComposedPipelineBase] = resolve(resolved.entry.pipeline)
    sampling = SamplingParam(
        num_inference_steps=5, guidance_scale=4.0, seed=5, height=32, width=64, num_frames=9, image_fit="stretch"
    )
    batch = ForwardBatch(
        prompts=["a red cat"], negative_prompts=["blurry"], sampling=sampling, media=read_media(sampling, media)
    )
    config = args.resolved_pipeline_config()
    video = pipeline.from_repo(resolved, args, config, groups).forward(batch).video
    assert video is not None
    return video


def on_rank(repo: Path, layout: Layout, media: dict[str, Any]) -> torch.Tensor:
    """`generate` on this rank of `layout`."""
    return generate(repo, build_groups(layout, "cpu"), media)


@pytest.mark.parametrize("layout", [Layout(ring=2), Layout(cfg=2, vae=True)], ids=str)
@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.distributed
def test_on_two(two: Processes, request: pytest.FixtureRequest, kind: str, layout: Layout) -> None:
    repo: Path = request.getfixturevalue(f"{kind}_repo")
    expected = generate(repo, ONE_RANK, MEDIA[kind])
    assert expected.std() > 0.01
    assert float((two.run(on_rank, repo, layout, MEDIA[kind])[0] - expected).abs().max()) < LEVEL
