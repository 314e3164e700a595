"""GGUF files over ranks, against one process."""

from pathlib import Path

import pytest
import torch

from fastvideo.configs.registry import SHIPPED_MODEL
from fastvideo.distributed.groups import ONE_RANK, Groups, build_groups
from fastvideo.distributed.layout import Layout
from fastvideo.models.loader.component_loader import load_component
from fastvideo.models.loader.gguf_source import with_weights
from fastvideo.models.loader.repo import resolve_repo
from tests import tiny_gguf
from tests.distributed.processes import Processes
from tests.loader.test_quantize import error, velocity

pytest.importorskip("gguf")


def predict(path: Path, groups: Groups) -> torch.Tensor:
    """What the shipped transformer predicts with the weights of GGUF file `path`."""
    source = with_weights(resolve_repo(SHIPPED_MODEL), {"transformer": str(path)}).components["transformer"]
    return velocity(load_component(source, groups=groups))


def predict_on_rank(path: Path, layout: Layout) -> torch.Tensor:
    """`predict` on this rank of `layout`."""
    return predict(path, build_groups(layout, "cpu"))


@pytest.mark.parametrize("layout", [Layout(ulysses=2), Layout(ring=2), Layout(cfg=2)], ids=str)
@pytest.mark.distributed
def test_over_ranks(two: Processes, tmp_path: Path, layout: Layout) -> None:
    state, _ = tiny_gguf.state_of(SHIPPED_MODEL, "transformer")
    tiny_gguf.write_gguf(tmp_path / "wan.gguf", state, tiny_gguf.mixed("Q8_0", "Q4_0"))
    expected = predict(tmp_path / "wan.gguf", ONE_RANK)
    for prediction in two.run(predict_on_rank, tmp_path / "wan.gguf", layout):
        assert error(prediction, expected) < 1e-5
