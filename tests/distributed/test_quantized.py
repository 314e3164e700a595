"""Quantized weights over ranks, against one process."""

import pytest
import torch

from fastvideo.distributed.groups import build_groups
from fastvideo.distributed.layout import Layout
from tests.distributed.processes import Processes
from tests.loader.test_quantize import BOUNDS, error, load, velocity

pytest.importorskip("torchao", reason="needs the extra quant")


def velocity_on_rank(layout: Layout, method: str) -> torch.Tensor:
    """`velocity` on this rank of `layout`."""
    groups = build_groups(layout, "cpu")
    return velocity(load("transformer", method, groups=groups))


@pytest.mark.parametrize("layout", [Layout(ulysses=2), Layout(ring=2), Layout(cfg=2), Layout(tp=2)], ids=str)
@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.distributed
def test_over_ranks(two: Processes, layout: Layout, method: str) -> None:
    # a slice of the columns has scales of its own, and rounded inputs turn a last bit into a step: no further from the
    # exact result, but not on the same side of it
    same = layout.tp == 1 and method != "int8_dynamic"
    expected = velocity(load("transformer", method if same else None))
    bound = 1e-5 if same else BOUNDS[method]
    for prediction in two.run(velocity_on_rank, layout, method):
        assert error(prediction, expected) < bound
