"""The attentions that leave keys out, each against its plain reference, on grids that divide and that do not."""

import math
import shutil
from functools import cache
from typing import Any

import pytest
import torch
from torch._inductor.compile_fx import compile_fx
from torch.nn.attention.flex_attention import flex_attention

from fastvideo.attention.backends import blocks, vmoba_attn
from fastvideo.attention.backends.base import LayerPlace
from fastvideo.attention.backends.blocks import VideoBackend, cut_grid
from fastvideo.attention.backends.sliding_tile_attn import SlidingTileBackend
from fastvideo.attention.backends.video_sparse_attn import VideoSparseBackend
from fastvideo.attention.backends.vmoba_attn import VMoBABackend
from fastvideo.configs.attention import MoBAConfig
from tests.attention import plain
from tests.attention.plain import Grid

BOUND = 1e-5
"""On the largest difference, of outputs whose values are around 1."""
GRIDS: tuple[Grid, ...] = ((8, 4, 8), (5, 6, 7), (1, 9, 5), (3, 1, 1))
"""Of the first all blocks are full; the last is one block."""
CPU = torch.device("cpu")


def tensors(grid: Grid, count: int = 3, batch: int = 2, heads: int = 3, dim: int = 12) -> list[torch.Tensor]:
    """Queries, keys, values, and so on. Neighbours are alike, so that blocks differ in what they look like."""
    generator = torch.Generator().manual_seed(sum(grid))
    length = math.prod(grid)
    noise = torch.randn(count, batch, length, heads, dim, generator=generator)
    walk = torch.randn(count, batch, length, heads, dim, generator=generator).cumsum(2) / 4
    return list((noise + walk).unbind())


def run(backend: VideoBackend, grid: Grid, *inputs: torch.Tensor) -> torch.Tensor:
    """The backend's attention, with a gate where there are four inputs."""
    backend.prepare(grid, CPU)
    return backend.with_gate(*inputs) if len(inputs) == 4 else backend(*inputs)


def check(made: torch.Tensor, expected: torch.Tensor) -> None:
    """They are the same up to rounding."""
    assert made.shape == expected.shape
    assert expected.std() > 0.1
    assert float((made - expected).abs().max()) < BOUND * max(1.0, float(expected.abs().max()))


@cache
def mixture(grid: Grid, chunk: Grid, mode: str, kind: str, amount: float) -> torch.Tensor:
    """The reference's, which takes its time."""
    return plain.mixture_of_blocks(*tensors(grid), grid, chunk, mode, kind, amount)


def cubes(grid: Grid) -> int:
    """How many there are."""
    return math.prod(math.ceil(length / 4) for length in grid)


@pytest.fixture(params=["gathered", "flex"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What attends: what runs on a CPU, or what runs on CUDA, with flex attention as it is without compiling."""
    if request.param == "flex":

        def by_flex(q: Any, k: Any, v: Any, allowed: Any, filled: Any) -> torch.Tensor:
            return blocks.flex_blocks(flex_attention, q, k, v, allowed, filled)

        def chunks_by_flex(q: Any, k: Any, v: Any, chosen: Any, sizes: Any) -> torch.Tensor:
            chunk = torch.arange(len(sizes)).repeat_interleave(sizes.long())
            return vmoba_attn.flex_chosen(flex_attention, q, k, v, chosen, chunk)

        monkeypatch.setattr(blocks, "gathered_blocks", by_flex)
        monkeypatch.setattr(vmoba_attn, "merged_chunks", chunks_by_flex)
        # as on CUDA, blocks have slots to spare
        for module in ("video_sparse_attn", "sliding_tile_attn"):
            monkeypatch.setattr(f"fastvideo.attention.backends.{module}.flex_rows", lambda device: 16)
    return str(request.param)


# ---- Blocks ----


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("grid", GRIDS)
def test_blocks_are_cut_and_joined(grid: Grid, rows: int) -> None:
    made = cut_grid(grid, (4, 4, 4), rows, CPU)
    numbers, counts = plain.block_numbers(grid, (4, 4, 4))
    assert made.counts == counts
    x = tensors(grid)[0]
    cut = made.cut(x)
    assert cut.shape[3] % rows == 0
    assert torch.equal(made.join(cut), x)
    assert torch.equal(made.sizes, numbers.bincount().float())
    assert torch.equal(numbers[made.order], numbers.sort().values)
    assert torch.equal(made.order.sort().values, torch.arange(math.prod(grid)))
    check(made.means(cut), plain.block_means(x, numbers))
    check(made.spread(made.means(cut)), plain.block_means(x, numbers)[:, :, numbers].transpose(1, 2))
    filled = torch.ones_like(made.tokens, dtype=torch.bool) if made.filled is None else made.filled
    assert int(filled.sum()) == math.prod(grid)
    assert (made.filled is None) == (filled.numel() == math.prod(grid))


# ---- Video sparse attention ----


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("grid", GRIDS)
def test_video_sparse_attention(engine: str, grid: Grid, sparsity: float, gated: bool) -> None:
    inputs = tensors(grid, 4 if gated else 3)
    kept = max(1, math.ceil(round((1 - sparsity) * cubes(grid), 6)))
    gate = inputs[3] if gated else None
    expected = plain.video_sparse(*inputs[:3], grid, kept, gate)
    check(run(VideoSparseBackend(sparsity), grid, *inputs), expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_no_sparsity_is_attention_over_all_keys(grid: Grid) -> None:
    inputs = tensors(grid)
    check(run(VideoSparseBackend(), grid, *inputs), plain.dense(*inputs))


def test_sparsity_leaves_keys_out() -> None:
    inputs = tensors(GRIDS[0])
    made = [run(VideoSparseBackend(sparsity), GRIDS[0], *inputs) for sparsity in (0.0, 0.5, 0.9)]
    distances = [float((other - made[0]).square().mean()) for other in made[1:]]
    assert 1e-3 < distances[0] < distances[1]


def test_cubes_kept() -> None:
    grid = (4, 4, 40)
    for sparsity, kept in ((0.0, 10), (0.7, 3), (0.8, 2), (0.85, 2), (0.9, 1), (0.99, 1)):
        backend = VideoSparseBackend(sparsity)
        backend.prepare(grid, CPU)
        assert backend._kept == kept, sparsity


@pytest.mark.parametrize("grid", GRIDS)
def test_all_blocks_chosen_is_attention_over_all_keys(engine: str, grid: Grid) -> None:
    # through the kernel for chosen blocks, which a sparsity of 0 goes around
    inputs = tensors(grid)
    made = cut_grid(grid, (4, 4, 4), 16, CPU)
    count = math.prod(made.counts)
    q, k, v = (made.cut(x) for x in inputs)
    allowed = torch.ones(2, 3, count, count, dtype=torch.bool)
    check(made.join(blocks.attend_blocks(q, k, v, allowed, made.filled)), plain.dense(*inputs))


def test_many_passes_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors(GRIDS[1])
    expected = run(VideoSparseBackend(0.5), GRIDS[1], *inputs)
    monkeypatch.setattr(blocks, "GATHERED_BYTES", 1)
    check(run(VideoSparseBackend(0.5), GRIDS[1], *inputs), expected)


# ---- Sliding tile attention ----

TILE: Grid = (2, 3, 4)
SAME: tuple[Grid, ...] = ((1, 1, 1), (3, 1, 3), (2, 2, 2), (3, 3, 3), (99, 1, 99))


@pytest.mark.parametrize("window", SAME)
@pytest.mark.parametrize("grid", GRIDS)
def test_one_window_for_all_heads(engine: str, grid: Grid, window: Grid) -> None:
    inputs = tensors(grid)
    expected = plain.sliding_tile(*inputs, grid, TILE, [window] * 3)
    check(run(SlidingTileBackend(TILE, (window,)), grid, *inputs), expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_window_for_each_head(engine: str, grid: Grid) -> None:
    windows: list[Grid] = [(3, 1, 1), (1, 3, 2), (3, 1, 1)]
    inputs = tensors(grid)
    expected = plain.sliding_tile(*inputs, grid, TILE, windows)
    check(run(SlidingTileBackend(TILE, tuple(windows)), grid, *inputs), expected)


@pytest.mark.parametrize("tile", [TILE, (6, 8, 8)])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_full_window_is_attention_over_all_keys(engine: str, grid: Grid, tile: Grid) -> None:
    inputs = tensors(grid)
    windows: tuple[Grid, ...] = ((99, 99, 99), (8, 9, 12), (99, 99, 99))
    check(run(SlidingTileBackend(tile, windows), grid, *inputs), plain.dense(*inputs))


# ---- Mixture of block attention ----

CHUNKS: dict[str, Any] = {"temporal_chunk_size": 2, "spatial_chunk_size": (3, 2), "st_chunk_size": (2, 3, 4)}
RULES = [
    ("topk", "query_head"), ("topk", "head_global"), ("topk", "overall"),
    ("threshold", "query_head"), ("threshold", "block"), ("threshold", "head_global"), ("threshold", "overall"),
]  # fmt: skip


def chunk_shape(layer: int, grid: Grid) -> Grid:
    """In time, in space, in both."""
    shapes: list[Grid] = [(2, grid[1], grid[2]), (grid[0], 3, 2), (2, 3, 4)]
    return shapes[layer % 3]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("mode", "kind"), RULES)
@pytest.mark.parametrize("grid", GRIDS[:3])
def test_mixture_of_blocks(engine: str, grid: Grid, layer: int, mode: str, kind: str) -> None:
    inputs = tensors(grid)
    topks = {"temporal_topk": 2, "spatial_topk": 2, "st_topk": 3}
    config = MoBAConfig(
        moba_select_mode=mode, moba_threshold_type=kind, moba_threshold=0.5 if layer else 0.2, **CHUNKS, **topks
    )
    chunk = chunk_shape(layer, grid)
    amount = config.moba_threshold
    if mode == "topk":
        count = int(plain.block_numbers(grid, chunk)[0].max()) + 1
        amount = min([*topks.values()][layer], count)
    expected = mixture(grid, chunk, mode, kind, amount)
    check(run(VMoBABackend(config, LayerPlace(layer=layer, layers=3)), grid, *inputs), expected)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("mode", "kind"), RULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_all_chunks_are_attention_over_all_keys(engine: str, grid: Grid, layer: int, mode: str, kind: str) -> None:
    inputs = tensors(grid)
    topks = {"temporal_topk": 99, "spatial_topk": 99, "st_topk": 99}
    config = MoBAConfig(moba_select_mode=mode, moba_threshold_type=kind, moba_threshold=1.0, **CHUNKS, **topks)
    check(run(VMoBABackend(config, LayerPlace(layer=layer, layers=3)), grid, *inputs), plain.dense(*inputs))


def test_layers_take_turns() -> None:
    config = MoBAConfig(first_full_layer=2, temporal_layer=2, spatial_layer=1, st_layer=1)
    grid = (8, 9, 10)
    chunks = [config.chunk_of(layer, grid) for layer in range(8)]
    in_time, in_space, in_both = ((2, 9, 10), 3), ((8, 3, 4), 20), ((4, 6, 4), 15)
    assert chunks == [None, None, in_time, in_time, in_space, in_both, in_time, in_time]
    inputs = tensors(GRIDS[1])
    check(run(VMoBABackend(config, LayerPlace(layer=1)), GRIDS[1], *inputs), plain.dense(*inputs))


# ---- All of them ----

ALL: dict[str, VideoBackend] = {
    "vsa": VideoSparseBackend(0.6),
    "sta": SlidingTileBackend((2, 3, 4), ((3, 1, 3), (1, 3, 3), (1, 1, 3))),
    "vmoba": VMoBABackend(MoBAConfig(**CHUNKS), LayerPlace(layer=2, layers=3)),
}


@pytest.mark.parametrize("name", ALL)
def test_samples_do_not_see_each_other(name: str) -> None:
    inputs = tensors(GRIDS[1])
    together = run(ALL[name], GRIDS[1], *inputs)
    for sample in range(2):
        check(run(ALL[name], GRIDS[1], *(x[sample : sample + 1] for x in inputs)), together[sample : sample + 1])


@pytest.mark.parametrize("name", ALL)
def test_a_scale(name: str) -> None:
    q, k, v = tensors(GRIDS[1])
    ALL[name].prepare(GRIDS[1], CPU)
    check(ALL[name](q, k, v, scale=0.3), ALL[name](q * 0.3 * math.sqrt(12), k, v))


@pytest.mark.parametrize("name", ALL)
def test_other_grids_follow(name: str) -> None:
    for grid in (GRIDS[1], GRIDS[0], GRIDS[1]):
        inputs = tensors(grid)
        fresh = {
            "vsa": VideoSparseBackend(0.6),
            "sta": SlidingTileBackend((2, 3, 4), ((3, 1, 3), (1, 3, 3), (1, 1, 3))),
        }
        other = fresh.get(name) or VMoBABackend(MoBAConfig(**CHUNKS), LayerPlace(layer=2, layers=3))
        assert torch.equal(run(ALL[name], grid, *inputs), run(other, grid, *inputs))


@pytest.mark.parametrize("name", ALL)
def test_bf16_is_close_to_fp32(name: str) -> None:
    inputs = [x.bfloat16() for x in tensors(GRIDS[1])]
    made = run(ALL[name], GRIDS[1], *inputs)
    assert made.dtype == torch.bfloat16
    expected = run(ALL[name], GRIDS[1], *(x.float() for x in inputs))
    # the same values choose the same blocks; what is left is the rounding of probabilities and results to 8 bits
    assert float((made - expected).square().mean().sqrt() / expected.square().mean().sqrt()) < 1e-2


@pytest.mark.parametrize("name", ALL)
def test_tokens_of_another_grid(name: str) -> None:
    backend = ALL[name]
    backend.prepare(GRIDS[1], CPU)
    with pytest.raises(ValueError, match=r"256 tokens are not those of the grid \(5, 6, 7\)"):
        backend(*tensors(GRIDS[0]))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_compiled_flex_attention() -> None:
    # it heeds the lists of blocks, which flex attention that is not compiled does not look at; and it is compiled
    # though it is called from what is not
    frames = []

    def compiling(graph: Any, inputs: Any) -> Any:
        frames.append(graph)
        return compile_fx(graph, inputs)

    compiled = torch.compile(flex_attention, backend=compiling, dynamic=False)
    flex = torch.compiler.disable(lambda *args, **kwargs: compiled(*args, **kwargs))
    for grid in GRIDS[:2]:
        inputs = tensors(grid, dim=16)
        made = cut_grid(grid, (4, 4, 4), 64, CPU)
        q, k, v = (made.cut(x) for x in inputs)
        count = math.prod(made.counts)
        generator = torch.Generator().manual_seed(1)
        best = torch.rand(2, 3, count, count, generator=generator).topk(3, dim=-1).indices
        allowed = torch.zeros(2, 3, count, count, dtype=torch.bool).scatter_(-1, best, True)
        by_flex = made.join(blocks.flex_blocks(flex, q, k, v, allowed, made.filled))
        check(by_flex, made.join(blocks.gathered_blocks(q, k, v, allowed, made.filled)))
        chunk = plain.block_numbers(grid, (2, grid[1], grid[2]))[0]
        chosen = torch.rand(2, 3, len(chunk), int(chunk.max()) + 1, generator=generator) < 0.4
        chosen[..., 0] = True
        q, k, v = (x.transpose(1, 2) for x in inputs)
        expected = vmoba_attn.merged_chunks(q, k, v, chosen, chunk.bincount())
        check(vmoba_attn.flex_chosen(flex, q, k, v, chosen, chunk), expected)
    assert frames
