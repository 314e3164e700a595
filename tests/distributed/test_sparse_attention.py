"""Attention that leaves keys out, on two processes that share the heads, against one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.distributed.groups import ONE_RANK, Groups, build_groups
from fastvideo.distributed.layout import Layout
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.component_loader import load_components
from fastvideo.models.loader.repo import resolve_repo
from tests import tiny_repos
from tests.distributed.processes import Processes
from tests.models.reference import BOUND, error, write_repo

SIZES = ((5, 10, 12), (1, 2, 10))
"""Of latents: 150 tokens; and 5, of which the ranks get unequal parts."""
OPTIONS: dict[str, dict[str, Any]] = {
    "VIDEO_SPARSE_ATTN": {"VSA_sparsity": 0.6},
    "SLIDING_TILE_ATTN": {"STA_tile_size": (2, 2, 2)},
    "VMOBA_ATTN": {"moba_config": {"temporal_chunk_size": 1, "moba_threshold_type": "head_global"}},
}


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of 4 heads with a gate branch, and one without in the folder `plain`; a file of windows."""
    folder = tmp_path_factory.mktemp("repos") / "gated"
    model = tiny_repos.make_transformer(seed=7, num_attention_heads=4, attention_head_dim=12)
    write_repo(folder / "plain", transformer=model)
    for block in model.blocks:
        block.to_gate_compress = torch.nn.Linear(48, 48)
    write_repo(folder, transformer=model)
    windows = {f"{layer}_{head}": [1 + head, 1 + layer, 1 + head // 2] for layer in range(3) for head in range(4)}
    (folder / "windows.json").write_text(json.dumps(windows))
    return folder


def predict(folder: Path, name: str, groups: Groups) -> list[torch.Tensor]:
    """What the transformer predicts for latents of each of `SIZES`."""
    options = dict(OPTIONS[name])
    if name == "SLIDING_TILE_ATTN":
        options["mask_strategy_file_path"] = str(folder / "windows.json")
    repo = folder if name == "VIDEO_SPARSE_ATTN" else folder / "plain"
    args = FastVideoArgs(model=str(repo), precision="fp32", device="cpu", attention_backend=name, **options)
    model: Any = load_components(
        resolve_repo(repo), ("transformer",), args, args.resolved_pipeline_config(), progress=False, groups=groups
    )["transformer"]
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 7, 36, generator=generator)
    made = []
    for size in SIZES:
        latents = torch.randn(2, 16, *size, generator=generator).cumsum(2).cumsum(3).cumsum(4) / 10
        with torch.no_grad():
            made.append(model(latents, torch.tensor([700.0, 30.0]), text=text))
    return made


def predict_on_rank(folder: Path, name: str, layout: Layout) -> list[torch.Tensor] | str:
    """The same on this rank of `layout`; the reason where it is refused."""
    try:
        return predict(folder, name, build_groups(layout, "cpu"))
    except ValueError as refusal:
        return str(refusal)


@pytest.mark.parametrize("layout", [Layout(ulysses=2), Layout(tp=2)], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.distributed
def test_heads_are_shared(two: Processes, repo: Path, name: str, layout: Layout) -> None:
    expected = predict(repo, name, ONE_RANK)
    for predictions in two.run(predict_on_rank, repo, name, layout):
        assert not isinstance(predictions, str), predictions
        for prediction, alone in zip(predictions, expected, strict=True):
            assert error(prediction, alone) < BOUND


@pytest.mark.distributed
@pytest.mark.parametrize("layout", [Layout(tp=2, ulysses=2), Layout(ulysses=4), Layout(cfg=2, ulysses=2)], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_heads_are_shared_by_four(four: Processes, repo: Path, name: str, layout: Layout) -> None:
    expected = predict(repo, name, ONE_RANK)
    for predictions in four.run(predict_on_rank, repo, name, layout):
        assert not isinstance(predictions, str), predictions
        for prediction, alone in zip(predictions, expected, strict=True):
            assert error(prediction, alone) < BOUND


@pytest.mark.parametrize("name", OPTIONS)
def test_a_ring_is_refused(two: Processes, repo: Path, name: str) -> None:
    for refusal in two.run(predict_on_rank, repo, name, Layout(ring=2)):
        assert f"attention backend '{name}': chooses among all keys, and a rank of a ring sees a part" in refusal
        assert "use ulysses_size or cfg_size in place of ring_size" in refusal


def competing_heads(folder: Path, layout: Layout) -> str:
    """Why VMoBA's rule "overall" cannot run on this rank."""
    args = FastVideoArgs(
        model=str(folder), device="cpu", attention_backend="VMOBA_ATTN",
        moba_config={"moba_threshold_type": "overall"},
    )  # fmt: skip
    with pytest.raises(ValueError) as refusal:
        load_components(
            resolve_repo(folder), ("transformer",), args, args.resolved_pipeline_config(), progress=False,
            groups=build_groups(layout, "cpu"),
        )  # fmt: skip
    return str(refusal.value)


def test_heads_that_compete_are_not_shared(two: Processes, repo: Path) -> None:
    for refusal in two.run(competing_heads, repo / "plain", Layout(ulysses=2)):
        assert "moba_threshold_type 'overall' lets all heads compete, and a rank has some of them" in refusal
