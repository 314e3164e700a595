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
from tests.tiny_repos import make_animate_repo

LEVEL = 1 / 255
MEDIA: dict[str, dict[str, Any]] = {
    "i2v": {"image": picture(30, 50)},
    "ti2v": {"image": picture(30, 50)},
    "vace": {"video": film(64, 32, 9), "reference_images": [picture(30, 50)]},
    "wan22": {},
    "fun_control": {"video": film(64, 32, 9), "reference_images": [picture(30, 50)]},
    "animate": {"image": picture(30, 50), "pose_video": film(64, 32, 9), "face_video": film(20, 20, 9)},
}
FIELDS: dict[str, dict[str, Any]] = {"animate": {"segment_frame_length": 5, "num_inference_steps": 2}}


def generate(repo: Path, groups: Groups, media: dict[str, Any], fields: dict[str, Any]) -> torch.Tensor:
    """The video [1, 3, T, H, W]; on ranks after the first it has no frames."""
    resolved = resolve_repo(repo)
    args = FastVideoArgs(model=str(repo), precision="fp32", device="cpu")
    pipeline: type[ComposedPipelineBase] = resolve(resolved.entry.pipeline)
    usual = {
        "num_inference_steps": 5, "guidance_scale": 4.0, "seed": 5, "height": 32, "width": 64, "num_frames": 9,
        "image_fit": "stretch",
    }  # fmt: skip
    sampling = SamplingParam(**{**usual, **fields})
    batch = ForwardBatch(
        prompts=["a red cat"], negative_prompts=["blurry"], sampling=sampling, media=read_media(sampling, media)
    )
    config = args.resolved_pipeline_config()
    video = pipeline.from_repo(resolved, args, config, groups).forward(batch).video
    assert video is not None
    return video


def on_rank(repo: Path, layout: Layout, media: dict[str, Any], fields: dict[str, Any]) -> torch.Tensor:
    """`generate` on this rank of `layout`."""
    return generate(repo, build_groups(layout, "cpu"), media, fields)


@pytest.mark.parametrize("layout", [Layout(ring=2), Layout(cfg=2, vae=True)], ids=str)
@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.distributed
def test_on_two(two: Processes, request: pytest.FixtureRequest, kind: str, layout: Layout) -> None:
    repo: Path = request.getfixturevalue(f"{kind}_repo")
    fields = FIELDS.get(kind, {})
    expected = generate(repo, ONE_RANK, MEDIA[kind], fields)
    assert expected.std() > 0.01
    assert float((two.run(on_rank, repo, layout, MEDIA[kind], fields)[0] - expected).abs().max()) < LEVEL


@pytest.mark.parametrize("layout", [Layout(tp=2), Layout(ulysses=2), Layout(ring=2, fsdp=True)], ids=str)
@pytest.mark.distributed
def test_layers_that_look_at_a_face_on_two(two: Processes, tmp_path: Path, layout: Layout) -> None:
    """In slices, with some of the heads or the tokens, and with weights that are gathered; in two segments."""
    # 3 heads of 20 would not divide
    heads = {"num_attention_heads": 2, "added_kv_proj_dim": 40}
    repo = make_animate_repo(tmp_path / "even", transformer=heads, text_encoder={"num_heads": 2})
    fields = {**FIELDS["animate"], "guidance_scale": 1.0}
    expected = generate(repo, ONE_RANK, MEDIA["animate"], fields)
    assert expected.std() > 0.01
    assert float((two.run(on_rank, repo, layout, MEDIA["animate"], fields)[0] - expected).abs().max()) < LEVEL
