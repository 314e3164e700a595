"""Ranks that skip blocks skip the same ones, and give the video of one process."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.configs.sample import SamplingParam
from fastvideo.distributed.groups import ONE_RANK, Groups, build_groups
from fastvideo.distributed.layout import Layout
from fastvideo.distributed.sequence import SequenceShard
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline
from fastvideo.pipelines.pipeline_batch_info import BlockRuns, ForwardBatch
from tests.distributed.processes import Processes

LEVEL = 1 / 255
LAYOUTS = {
    "ulysses": Layout(ulysses=2),
    "ring": Layout(ring=2),
    "tensor": Layout(tp=2),
    "guidance": Layout(cfg=2),
    "fsdp, ring": Layout(ring=2, fsdp=True),
}
FOUR = {
    "ring of ulysses": Layout(ring=2, ulysses=2),
    "tensor, guidance": Layout(tp=2, cfg=2),
    "guidance, ulysses": Layout(cfg=2, ulysses=2),
    "tensor, ring": Layout(tp=2, ring=2),
}
REQUESTS: tuple[dict[str, Any], ...] = (
    {"cache": "fbcache", "cache_threshold": 0.12, "guidance_interval": (0.2, 1.0), "cfg_gate_step": 0.4,
     "cfg_gate_refresh": 3, "cfg_zero_star": True},
    {"cache": "teacache", "cache_threshold": 1.0, "cache_order": 1, "cfg_gate_step": 0.6},
)  # fmt: skip
SIZE = {"height": 16, "width": 80, "num_frames": 1, "num_inference_steps": 8, "guidance_scale": 4.0, "seed": 5}
"""Five tokens: the second rank of two has one of padding."""

Made = tuple[torch.Tensor, BlockRuns]


def generate(repo: Path, groups: Groups, requests: tuple[dict[str, Any], ...]) -> list[Made]:
    """The videos of `requests`, without frames on ranks after the first, and their block runs."""
    args = FastVideoArgs(model=str(repo), precision="fp32", device="cpu")
    pipeline = WanPipeline.from_repo(resolve_repo(repo), args, args.resolved_pipeline_config(), groups)
    made = []
    for fields in requests:
        sampling = SamplingParam(**SIZE, **fields)
        batch = pipeline.forward(ForwardBatch(prompts=["a red cat"], negative_prompts=["blurry"], sampling=sampling))
        assert batch.video is not None
        assert batch.block_runs is not None
        made.append((batch.video, batch.block_runs))
    return made


def on_rank(repo: Path, layout: Layout) -> list[Made]:
    """`REQUESTS` on this rank of `layout`."""
    return generate(repo, build_groups(layout, "cpu"), REQUESTS)


@cache
def expected(repo: Path) -> list[Made]:
    """Of one process."""
    return generate(repo, ONE_RANK, REQUESTS)


def check(processes: Processes, repo: Path, layout: Layout) -> None:
    """All ranks count what one process does, and the first has its videos."""
    ranks = processes.run(on_rank, repo, layout)
    for number, (video, runs) in enumerate(expected(repo)):
        assert runs.saved > 0
        assert [made[number][1] for made in ranks] == [runs] * len(ranks)
        assert video.std() > 0.01
        assert float((ranks[0][number][0] - video).abs().max()) < LEVEL


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.distributed
def test_two(two: Processes, even_repo: Path, name: str) -> None:
    check(two, even_repo, LAYOUTS[name])


@pytest.mark.distributed
@pytest.mark.parametrize("name", FOUR)
def test_four(four: Processes, even_repo: Path, name: str) -> None:
    check(four, even_repo, FOUR[name])


def totals(length: int) -> torch.Tensor:
    """The sums over a sequence of 1, 2, 3 and on, and of ones, of which this rank has a part; padding is large."""
    groups = build_groups(Layout(ring=2), "cpu")
    shard = SequenceShard(groups)
    values = torch.stack((torch.arange(1.0, length + 1), torch.ones(length)), dim=-1)[None]
    part, _ = shard.scatter(values, {})
    part[:, max(0, min(length - groups.sp.rank * part.shape[1], part.shape[1])) :] = 1e6
    return shard.total(part.movedim(-1, 0))


@pytest.mark.parametrize("length", [4, 5, 1])
def test_sums_are_over_the_whole_sequence_without_padding(two: Processes, length: int) -> None:
    for sums in two.run(totals, length):
        assert sums.tolist() == [length * (length + 1) / 2, length]


def refused(repo: Path, fields: dict[str, Any]) -> str:
    """The message on this rank."""
    groups = build_groups(Layout(cfg=2, fsdp=True), "cpu")
    with pytest.raises(ValueError) as error:
        generate(repo, groups, (fields,))
    return str(error.value)


@pytest.mark.parametrize("fields", [{"cache": "fbcache"}, {"cfg_gate_step": 0.5}, {"guidance_interval": (0.5, 1.0)}])
def test_sharded_weights_and_two_groups_are_refused(two: Processes, even_repo: Path, fields: dict[str, Any]) -> None:
    for message in two.run(refused, even_repo, fields):
        assert "must run the same blocks; use cfg_size=1, or leave it out" in message
