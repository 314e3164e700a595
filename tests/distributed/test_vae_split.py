"""Decoding spread over ranks against one rank's: whatever the grid, the clip's length, its height and the chunk."""

from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastvideo.configs.models.vaes.wanvae import WanVAEArchConfig
from fastvideo.distributed.groups import ONE_RANK, Group, Groups, traffic
from fastvideo.distributed.vae_split import FrameSplit, Grid, Neighbours, Plan, rounds_of, split_grid, spread
from fastvideo.models.vaes.base import OneRank
from fastvideo.models.vaes.tiling import Tiling
from fastvideo.models.vaes.wanvae import AutoencoderKLWan, CausalConv3d, FrameConv2d
from fastvideo.pipelines.pipeline_batch_info import Control
from fastvideo.pipelines.stages.decoding import DecodingStage
from tests.distributed.processes import Processes
from tests.models.reference import BF16_NOISE, mean_square
from tests.pipelines.stand_ins import ARGS, make_batch

SEED = 5
BOUND = 1e-5
"""On the largest difference of values in [-1, 1], in fp32."""
FRAMES = (1, 2, 3, 5, 9)
TIME, SPACE = Grid(2, 1), Grid(1, 2)


@dataclass(frozen=True)
class Case:
    """A clip, and how it is decoded."""

    frames: int
    rows: int = 3
    chunk: int = 4
    grid: Grid | None = None
    """None lets `split_grid` choose."""
    batch: int = 1
    dtype: torch.dtype = torch.float32
    deep: bool = False
    """Whether the model has as many levels as the published one."""
    stop_after: int | None = None
    """Parts after which it is stopped."""


@dataclass(frozen=True)
class Result:
    """What a rank saw of a decoding."""

    shapes: list[tuple[int, ...]]
    """Of the parts."""
    parts: int
    """That were announced."""
    video: torch.Tensor
    taken: list[int]
    """Latent frames that went through the decoder at once."""
    sent: int
    """Bytes."""
    formula: int
    """Bytes that the module's formula gives for what went into the layers, without the video itself."""


@cache
def make_vae(dtype: torch.dtype = torch.float32, deep: bool = False) -> AutoencoderKLWan:
    """A random model: 8 channels at full size, 4 in the latents."""
    levels = {} if deep else {"dim_mult": (1, 2, 2), "temperal_downsample": (True, True), "scale_factor_spatial": 4}
    arch = WanVAEArchConfig(
        base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(1.5, 0.5, 1.0, 2.0),
        **levels,
    )  # fmt: skip
    torch.manual_seed(SEED)
    return AutoencoderKLWan(arch).requires_grad_(False).to(dtype)


def latents_of(case: Case) -> torch.Tensor:
    """Normal noise [B, 4, t, h, 3]."""
    return torch.randn(case.batch, 4, case.frames, case.rows, 3, generator=torch.Generator().manual_seed(SEED))


@torch.inference_mode()
def alone(case: Case) -> torch.Tensor:
    """The video that one rank makes."""
    vae = make_vae(case.dtype, case.deep)
    vae.split, vae.chunk = OneRank(), case.chunk
    return vae.decode(latents_of(case))


@torch.inference_mode()
def shared(case: Case) -> Result:
    """The case on this rank, which is one of several."""
    vae, group = make_vae(case.dtype, case.deep), Group("world", dist.group.WORLD)
    choose = split_grid if case.grid is None else lambda *sizes: case.grid
    vae.split, vae.chunk = FrameSplit(group, choose), case.chunk
    latents, taken, formula = latents_of(case), [], []
    plan = vae.split.plan(latents, vae.chunk)

    def convolved(module: nn.Module, args: tuple[Any, ...]) -> None:
        formula.append(sent_for(module, args[0], plan, group.rank, args[1].chunk))

    hooks = [vae.decoder.register_forward_pre_hook(lambda module, args: taken.append(args[0].shape[2]))]
    for module in vae.modules():
        if isinstance(module, (CausalConv3d, FrameConv2d)):
            hooks.append(module.register_forward_pre_hook(convolved))
    before = traffic["world.exchange"]
    parts = list(islice(vae.stream(latents), case.stop_after))
    for hook in hooks:
        hook.remove()
    sent = traffic["world.exchange"] - before
    shapes = [tuple(part.shape) for part in parts]
    return Result(shapes, vae.parts(latents), torch.cat(parts, 2), taken, sent, sum(formula))


def sent_for(module: Any, x: torch.Tensor, plan: Plan, rank: int, chunk: int) -> int:
    """Bytes that a rank sends for a convolution of `x`, by the module's formula; attention is not among them."""
    *_, height, width = x.shape
    column = x.element_size() * x.shape[0] * x.shape[1] * width
    tall = module.kernel_size[-2] == 3 and plan.grid.space > 1
    neighbours = (rank % plan.grid.space > 0) + (rank % plan.grid.space < plan.grid.space - 1)
    frames = x.shape[2] if x.dim() == 5 else 1
    sent = neighbours * column * frames if tall else 0
    if x.dim() == 5 and module.kernel_size[0] == 3 and plan.grid.time > 1 and chunk + 1 < plan.used:
        sent += 2 * column * (height + 2 * tall)
    return sent


def check(processes: Processes, case: Case) -> list[Result]:
    """What the ranks see of `case`, which amounts to what one rank decodes."""
    results, expected = processes.run(shared, case), alone(case)
    assert expected.std() > 0.05
    first, *others = results
    assert first.video.shape == expected.shape
    assert first.video.dtype == case.dtype
    difference = (first.video - expected).abs().max()
    assert difference <= BOUND, f"{case}, seed {SEED}: {difference}"
    empty = (*expected.shape[:2], 0, *expected.shape[3:])
    for result in others:
        assert set(result.shapes) == {empty}
        assert result.video.dtype == case.dtype
    assert {len(result.shapes) for result in results} == {result.parts for result in results} == {first.parts}
    assert max(frames for result in results for frames in result.taken) <= case.chunk
    return results


def check_rounded(processes: Processes, grid: Grid) -> None:
    """In bf16, sums over inputs of other sizes round otherwise, on one rank too; the error is no larger for it."""
    errors: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"shared": [], "alone": []}
    for chunk in (1, 2, 4):
        case = Case(5, rows=4, chunk=chunk, grid=grid, batch=2, dtype=torch.bfloat16)
        exact = alone(replace(case, dtype=torch.float32))
        first, *_ = processes.run(shared, case)
        assert first.video.dtype == torch.bfloat16
        errors["shared"].append((first.video, exact))
        errors["alone"].append((alone(case), exact))
    assert 0 < mean_square(errors["shared"]) <= BF16_NOISE * mean_square(errors["alone"])


class TestTwo:
    @pytest.mark.parametrize("chunk", [1, 2, 4])
    @pytest.mark.parametrize("frames", FRAMES)
    def test_time(self, two: Processes, frames: int, chunk: int) -> None:
        check(two, Case(frames, chunk=chunk, grid=TIME))

    @pytest.mark.parametrize(("frames", "rows", "chunk"), [(1, 2, 4), (2, 3, 1), (3, 5, 2), (5, 3, 4), (9, 7, 4)])
    def test_space(self, two: Processes, frames: int, rows: int, chunk: int) -> None:
        check(two, Case(frames, rows, chunk, grid=SPACE))

    @pytest.mark.parametrize("grid", [TIME, SPACE])
    def test_the_published_levels_and_a_batch(self, two: Processes, grid: Grid) -> None:
        check(two, Case(5, rows=3, chunk=2, grid=grid, batch=2, deep=True))

    @pytest.mark.parametrize(("frames", "rows"), [(1, 1), (1, 3), (4, 1)])
    def test_what_is_chosen(self, two: Processes, frames: int, rows: int) -> None:
        check(two, Case(frames, rows))

    @pytest.mark.parametrize("grid", [TIME, SPACE])
    def test_traffic(self, two: Processes, grid: Grid) -> None:
        case = Case(7, rows=5, chunk=2, grid=grid, batch=2)
        first, second = check(two, case)
        values = 4 * 16 * 2  # attention: bytes, channels, of keys and values
        attention = [0, 0] if grid == TIME else [2 * values * 7 * rows * 3 for rows in (3, 2)]
        video = 4 * 2 * 3 * 12 * 4 * (5 * sum(second.taken) * 4 if grid == TIME else 2 * 25)
        assert first.sent == first.formula + attention[0] > 0
        assert second.sent == second.formula + attention[1] + video

    @pytest.mark.parametrize("grid", [TIME, SPACE])
    def test_stopping_leaves_nothing_behind(self, two: Processes, grid: Grid) -> None:
        two.run(shared, Case(9, chunk=2, grid=grid, stop_after=1))
        check(two, Case(5, chunk=2, grid=grid))

    @pytest.mark.parametrize("grid", [TIME, SPACE])
    def test_bf16(self, two: Processes, grid: Grid) -> None:
        check_rounded(two, grid)

    def test_the_stage(self, two: Processes) -> None:
        (video, seen), (nothing, seen_there) = two.run(run_stage, 5, 0.0)
        torch.testing.assert_close(video, alone(Case(5)) / 2 + 0.5, rtol=0, atol=BOUND)
        assert nothing.shape == (1, 3, 0, *video.shape[3:])
        assert seen == seen_there == [(step, 3) for step in range(4)]

    def test_all_ranks_stop_at_a_frame_that_is_not_finite(self, two: Processes) -> None:
        assert two.run(run_stage, 5, torch.nan) == ["NaN or infinity in the decoded frames"] * 2

    @pytest.mark.parametrize("frames", [1, 5])
    def test_tiles(self, two: Processes, frames: int) -> None:
        case = Case(frames, rows=7, chunk=2)
        (first, count), (other, same) = two.run(tiled, case)
        torch.testing.assert_close(first, tiled_alone(case), rtol=0, atol=BOUND)
        assert (first - alone(case)).abs().max() > BOUND
        assert other.shape[2] == 0
        assert count == same


def tiling_of(vae: AutoencoderKLWan) -> Tiling:
    """Of 3 latents a side, one of them shared."""
    return Tiling(3 * vae.arch.scale_factor_spatial, 2 * vae.arch.scale_factor_spatial)


@torch.inference_mode()
def tiled_alone(case: Case) -> torch.Tensor:
    """The video that one rank makes of tiles."""
    vae = make_vae(case.dtype, case.deep)
    vae.split, vae.chunk, vae.tiling = OneRank(), case.chunk, tiling_of(vae)
    video = vae.decode(latents_of(case))
    vae.tiling = None
    return video


@torch.inference_mode()
def tiled(case: Case) -> tuple[torch.Tensor, int]:
    """The video on this rank, which shares each tile with the others, and the number of its parts."""
    vae = make_vae(case.dtype, case.deep)
    vae.chunk, vae.tiling = case.chunk, tiling_of(vae)
    vae.split = FrameSplit(Group("world", dist.group.WORLD))
    latents = latents_of(case)
    parts = list(vae.stream(latents))
    assert len(parts) == vae.parts(latents)
    vae.tiling = None
    return torch.cat(parts, 2), len(parts)


@torch.inference_mode()
def run_stage(frames: int, offset: float) -> tuple[torch.Tensor, list[tuple[int, int]]] | str:
    """The video and the steps that the decoding stage reports on this rank, or the beginning of its error."""
    vae, world = make_vae(), Group("world", dist.group.WORLD)
    vae.split, vae.chunk = FrameSplit(world, lambda *sizes: TIME), 1
    stage, seen = DecodingStage(vae), []
    stage.groups = Groups(world=world, control=world)
    batch = make_batch(control=Control(report=lambda progress: seen.append((progress.step, progress.total))))
    batch.latents = latents_of(Case(frames)) + offset
    try:
        video = stage.forward(batch, ARGS).video
    except FloatingPointError as error:
        return str(error).partition(":")[0]
    assert video is not None
    return video, seen


@pytest.mark.distributed
class TestFour:
    @pytest.mark.parametrize(
        ("frames", "chunk"), [(1, 1), (2, 1), (3, 1), (5, 1), (9, 1), (3, 4), (5, 4), (9, 2), (13, 2)]
    )
    def test_time(self, four: Processes, frames: int, chunk: int) -> None:
        check(four, Case(frames, chunk=chunk, grid=Grid(4, 1)))

    @pytest.mark.parametrize(("frames", "rows"), [(1, 4), (3, 7), (5, 6)])
    def test_space(self, four: Processes, frames: int, rows: int) -> None:
        check(four, Case(frames, rows, chunk=2, grid=Grid(1, 4)))

    @pytest.mark.parametrize(("frames", "rows", "chunk"), [(1, 2, 4), (2, 3, 4), (3, 3, 1), (5, 5, 2), (9, 3, 2)])
    def test_both(self, four: Processes, frames: int, rows: int, chunk: int) -> None:
        check(four, Case(frames, rows, chunk, grid=Grid(2, 2)))

    @pytest.mark.parametrize("grid", [Grid(3, 1), Grid(1, 3), Grid(1, 1)])
    def test_ranks_with_nothing_to_do(self, four: Processes, grid: Grid) -> None:
        results = check(four, Case(5, rows=4, chunk=2, grid=grid))
        assert [bool(result.taken) for result in results] == [rank < grid.time * grid.space for rank in range(4)]

    def test_the_published_levels_and_a_batch(self, four: Processes) -> None:
        check(four, Case(5, rows=3, chunk=2, grid=Grid(2, 2), batch=2, deep=True))

    def test_bf16(self, four: Processes) -> None:
        check_rounded(four, Grid(2, 2))

    def test_traffic(self, four: Processes) -> None:
        results = check(four, Case(7, rows=5, chunk=2, grid=Grid(2, 2)))
        for rank, result in enumerate(results):
            rows = (3, 2)[rank % 2]
            attention = 4 * 16 * 2 * sum(result.taken) * rows * 3
            video = 4 * 3 * 12 * 4 * rows * (4 * sum(result.taken) - 3 * (rank < 2))
            assert result.sent == result.formula + attention + (video if rank else 0)


def test_one_rank() -> None:
    expected = alone(Case(5))
    vae = make_vae()
    vae.split, vae.chunk = FrameSplit(ONE_RANK.world), 2
    with torch.inference_mode():
        parts = list(vae.stream(latents_of(Case(5))))
    assert [part.shape[2] for part in parts] == [5, 8, 4]
    assert (torch.cat(parts, 2) - expected).abs().max() <= BOUND


def test_nothing_is_kept_but_the_frames_that_are_needed() -> None:
    neighbours = Neighbours(ONE_RANK.world, Plan(Grid(1, 1), (4, 1), (3,)))
    with torch.inference_mode():
        make_vae().frames(latents_of(Case(4)), neighbours)
    assert neighbours._before
    for frames in neighbours._before.values():
        assert frames.shape[1] == 2
        assert frames.untyped_storage().nbytes() == frames.nbytes


@pytest.mark.parametrize(
    ("ranks", "frames", "rows", "chunk", "grid"),
    [
        (1, 21, 60, 4, Grid(1, 1)),
        (2, 1, 60, 4, Grid(1, 2)),  # an image
        (8, 1, 5, 4, Grid(1, 5)),  # fewer rows than ranks
        (2, 20, 60, 4, Grid(2, 1)),  # equal: time
        (3, 21, 60, 4, Grid(3, 1)),
        (2, 21, 60, 4, Grid(1, 2)),  # 11 of 21 frames would be worse than half of the rows
        (4, 21, 60, 4, Grid(1, 4)),
        (8, 21, 61, 4, Grid(1, 8)),
        (5, 5, 2, 4, Grid(5, 1)),
        (4, 2, 2, 4, Grid(2, 2)),
        (16, 21, 12, 4, Grid(8, 2)),
        (64, 21, 12, 4, Grid(21, 3)),
    ],
)
def test_split_grid(ranks: int, frames: int, rows: int, chunk: int, grid: Grid) -> None:
    assert split_grid(ranks, frames, rows, chunk) == grid


def test_every_position_is_decoded_once() -> None:
    for ranks, frames, rows, chunk in product((1, 2, 3, 4, 7), (1, 2, 3, 5, 8, 21), (1, 2, 5, 12), (1, 2, 4)):
        latents = torch.arange(frames * rows).view(1, 1, frames, rows, 1)
        for grid in {split_grid(ranks, frames, rows, chunk), Grid(ranks, 1), Grid(1, min(ranks, rows))}:
            plan = FrameSplit(ONE_RANK.world, lambda *sizes, grid=grid: grid).plan(latents, chunk)
            seen, busy = [], []
            for turn, rank in product(range(plan.rounds), range(ranks)):
                mine = plan.chunk_of(rank, turn)
                busy.append(mine is not None)
                if mine is not None:
                    part = plan.part(latents, rank, mine)
                    assert 0 < part.shape[2] <= chunk
                    assert part.numel()
                    seen.append(part.flatten())
            assert sorted(torch.cat(seen).tolist()) == list(range(frames * rows))
            assert plan.rounds == rounds_of(frames, grid.time, chunk)
            # whoever has nothing to do comes last: nobody waits for it
            used = grid.time * grid.space
            order = [busy[turn * ranks + rank] for turn in range(plan.rounds) for rank in range(used)]
            assert order == sorted(order, reverse=True)


def test_spread() -> None:
    assert spread(7, 3) == [3, 2, 2]
    assert spread(2, 4) == [1, 1, 0, 0]
