"""LoRAs on every way to share the work: each rank has its part of what one process has, and gets its bits back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.distributed.groups import ONE_RANK, Groups, build_groups
from fastvideo.distributed.layout import Layout
from fastvideo.distributed.placement import local_rows, reshard
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.lora import LoraSet, load_adapter, transformers_of
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline
from tests import loras
from tests.distributed.processes import Processes
from tests.distributed.test_parallel import BOUND, FOUR, TWO

LAYOUTS = {name: TWO[name] for name in ("ulysses", "ring", "tensor", "fsdp, ring", "fsdp, guidance")}
LARGER = {name: FOUR[name] for name in ("tensor", "tensor, ring", "fsdp, tensor, ring")}
DIMS = {"odd": 60, "even": 48}


@pytest.fixture(scope="session")
def repos(wan_repo: Path, even_repo: Path) -> dict[str, Path]:
    """The tiny models, by what their heads are."""
    return {"odd": wan_repo, "even": even_repo}


def make_set(repo: Path, folder: Path, dim: int, merged: bool) -> LoraSet:
    """Two LoRAs: one of pairs in every layer, one with differences of weights, biases, norms and the modulation."""
    generator = torch.Generator().manual_seed(4)
    state = loras.comfy(loras.make_pairs(2, names=("attn1.to_k", "ffn.net.2"), dim=dim))
    for name, shape in {
        "blocks.1.self_attn.q.diff": (dim, dim), "blocks.2.cross_attn.v.diff_b": (dim,),
        "blocks.0.ffn.0.diff_b": (100,), "blocks.0.ffn.2.diff_b": (dim,), "blocks.0.self_attn.norm_q.diff": (dim,),
        "blocks.0.modulation.diff": (1, 6, dim), "blocks.1.norm3.diff_b": (dim,),
        "patch_embedding.diff": (dim, 16, 1, 2, 2), "blocks.2.cross_attn.o.diff": (dim, dim),
        "patch_embedding.lora_down.weight": (2, 16, 1, 2, 2), "patch_embedding.lora_up.weight": (dim, 2, 1, 1, 1),
        "time_projection.1.lora_down.weight": (2, dim), "time_projection.1.lora_up.weight": (6 * dim, 2),
    }.items():  # fmt: skip
        state[f"diffusion_model.{name}"] = 0.2 * torch.randn(shape, generator=generator)
    paths = {
        "pairs": loras.write(folder / "pairs.safetensors", loras.peft(loras.make_pairs(1, dim=dim))),
        "differences": loras.write(folder / "differences.safetensors", state),
    }
    models = transformers_of(resolve_repo(repo))
    adapters = [load_adapter(name, path, models) for name, path in paths.items()]
    assert [adapter.not_applied for adapter in adapters] == [{}, {}]
    return LoraSet(tuple(zip(adapters, (0.7, 0.4), strict=True)), merged)


def bits(model: torch.nn.Module, groups: Groups) -> dict[str, torch.Tensor]:
    """A copy of this rank's weights."""
    if groups.layout.fsdp:
        reshard(model)
    return {name: local_rows(parameter)[0].detach().clone() for name, parameter in model.named_parameters()}


def velocities(repo: Path, groups: Groups, sets: tuple[LoraSet, ...]) -> list[torch.Tensor]:
    """What the transformer predicts with each of `sets` in turn, and then with none; its weights are as they were."""
    args = FastVideoArgs(model=str(repo), precision="fp32", device="cpu")
    pipeline = WanPipeline.from_repo(resolve_repo(repo), args, args.resolved_pipeline_config(), groups)
    model: Any = pipeline.components["transformer"]
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 16, 3, 4, 6, generator=generator), torch.randn(2, 7, 36, generator=generator)
    before = bits(model, groups)
    predictions = []
    for loras_now in (*sets, LoraSet()):
        pipeline.adapt(loras_now)
        with torch.no_grad():
            predictions.append(model(latents, torch.tensor([700.0, 30.0]), text=text, text_padding=500))
    after = bits(model, groups)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("lora" in name for name, _ in model.named_modules())
    return predictions


def on_rank(repo: Path, layout: Layout, sets: tuple[LoraSet, ...]) -> list[torch.Tensor]:
    """`velocities` on this rank."""
    return velocities(repo, build_groups(layout, "cpu"), sets)


def check(processes: Processes, repo: Path, layout: Layout, folder: Path, dim: int) -> None:
    """Every rank predicts what one process predicts; merged is the same as beside."""
    sets = tuple(make_set(repo, folder, dim, merged) for merged in (False, True))
    expected = velocities(repo, ONE_RANK, sets)
    scale = expected[0].abs().max()
    assert float((expected[0] - expected[1]).abs().max() / scale) < BOUND
    assert float((expected[0] - expected[2]).abs().max() / scale) > 0.05, "the LoRAs do something"
    for predictions in processes.run(on_rank, repo, layout, sets):
        for prediction, one in zip(predictions, expected, strict=True):
            assert float((prediction - one).abs().max() / one.abs().max()) < BOUND


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.distributed
def test_two_processes(two: Processes, repos: dict[str, Path], tmp_path: Path, name: str) -> None:
    model, layout = LAYOUTS[name]
    check(two, repos[model], layout, tmp_path, DIMS[model])


@pytest.mark.distributed
@pytest.mark.parametrize("name", LARGER)
def test_four_processes(four: Processes, repos: dict[str, Path], tmp_path: Path, name: str) -> None:
    model, layout = LARGER[name]
    check(four, repos[model], layout, tmp_path, DIMS[model])
