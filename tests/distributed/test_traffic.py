"""What ranks send, counted, is what the formulas of the docs say."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from fastvideo.configs.sample import SamplingParam
from fastvideo.distributed.cost import StepShape, bytes_sent
from fastvideo.distributed.groups import build_groups, traffic
from fastvideo.distributed.layout import Layout
from fastvideo.models.loader.component_loader import load_component
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.pipelines.stages.prediction import Predictor, alone, same_guidance
from tests.distributed.processes import Processes

SHAPE = StepShape(layers=3, hidden=48, tokens=3 * 2 * 4, text=8, patch=64, latents=16 * 3 * 4 * 8, batch=2, itemsize=4)


def step(repo: Path, layout: Layout) -> Counter[str]:
    """The bytes that this rank sends for one guided step, by group."""
    groups = build_groups(layout, "cpu")
    model = load_component(resolve_repo(repo).components["transformer"], groups=groups)
    predict = Predictor(SamplingParam(), 1, guide=same_guidance, cfg=groups.cfg)
    # one row for the padding makes 8 rows of text
    text = {"text": torch.zeros(2, 7, 36), "text_padding": 505}
    traffic.clear()
    with torch.no_grad():
        alone(predict.both(model, torch.zeros(2, 16, 3, 4, 8), torch.ones(2), text, text))
    sent: Counter[str] = Counter()
    for name, count in traffic.items():
        sent[name.split(".")[0]] += count
    return sent


def check(processes: Processes, repo: Path, layout: Layout) -> None:
    """All ranks send alike, and what the formula says."""
    expected = bytes_sent(SHAPE, layout)
    for sent in processes.run(step, repo, layout):
        assert sent == expected


@pytest.mark.parametrize("layout", [Layout(ulysses=2), Layout(ring=2), Layout(tp=2), Layout(cfg=2)], ids=str)
def test_two(two: Processes, even_repo: Path, layout: Layout) -> None:
    check(two, even_repo, layout)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "layout",
    [
        Layout(ulysses=4),
        Layout(ring=4),
        Layout(ring=2, ulysses=2),
        Layout(tp=4),
        Layout(tp=2, ulysses=2),
        Layout(cfg=2, ring=2),
        Layout(cfg=2, tp=2),
    ],
    ids=str,
)
def test_four(four: Processes, even_repo: Path, layout: Layout) -> None:
    check(four, even_repo, layout)


def test_the_formulas_of_the_field() -> None:
    length, width, layers, ranks = 1200, 640, 5, 4
    shape = StepShape(layers=layers, hidden=width, tokens=length, text=512, patch=64, latents=0, itemsize=1)
    per_layer = length * width // ranks
    assert bytes_sent(shape, Layout(ulysses=ranks, cfg=2))["ulysses"] == layers * 4 * per_layer * (ranks - 1) // ranks
    assert bytes_sent(shape, Layout(ring=ranks, cfg=2))["ring"] == layers * 2 * (ranks - 1) * per_layer
    # without cfg a rank computes both predictions
    assert bytes_sent(shape, Layout(ring=ranks))["ring"] == 2 * layers * 2 * (ranks - 1) * per_layer
