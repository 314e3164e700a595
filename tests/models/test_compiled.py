"""Compiled blocks: one graph each, and none again for another step or a longer prompt."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.models.reference import error, ours


def inputs(length: int, time: float) -> dict[str, torch.Tensor]:
    """One request of a step."""
    generator = torch.Generator().manual_seed(length)
    latents = torch.randn(2, 16, 3, 6, 8, generator=generator)
    return {
        "latents": latents,
        "timestep": torch.full((2,), time),
        "text": torch.randn(2, length, 36, generator=generator),
    }


@torch.no_grad()
def test_one_graph_serves_every_step_and_prompt(wan_repo: Path) -> None:
    torch.compiler.reset()
    model, plain = (ours(wan_repo, "transformer") for _ in range(2))
    counter = CompileCounter()
    model.compile_blocks(backend=counter, fullgraph=True)
    for length, time in ((5, 999.0), (5, 500.5), (9, 10.0), (2, 10.0), (40, 3.0)):
        one = inputs(length, time)
        # the rotation is in real numbers there: the same up to rounding
        assert error(model(**one, text_padding=7), plain(**one, text_padding=7)) < 1e-6
    assert counter.frame_count == 1, "the blocks are alike, so one graph does for all of them"
    torch.compiler.reset()


@pytest.mark.slow
@torch.no_grad()
def test_compiled_to_code(wan_repo: Path) -> None:
    model, plain = (ours(wan_repo, "transformer") for _ in range(2))
    model.compile_blocks()
    for length in (5, 9):
        one = inputs(length, 500.0)
        assert error(model(**one, text_padding=7), plain(**one, text_padding=7)) < 1e-5
