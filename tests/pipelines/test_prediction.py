"""How guidance joins two predictions, against the guiders of the reference, on a model that is a table."""

from typing import Any

import pytest
import torch

from fastvideo.configs.sample import SamplingParam
from fastvideo.distributed.groups import Group
from fastvideo.pipelines.stages.prediction import At, Predictor, alone, projected, same_guidance

SHAPE = (2, 3, 2, 4, 4)
STEPS = 8


class Table:
    """Predicts a random tensor for each step and text."""

    blocks = (None, None)

    def __init__(self, seed: int = 0) -> None:
        self.values = torch.randn(2, STEPS, *SHAPE, generator=torch.Generator().manual_seed(seed))
        self.asked: list[tuple[int, int]] = []

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, *, row: int) -> torch.Tensor:
        self.asked.append((row, int(timestep[0])))
        return self.values[row, int(timestep[0])]


def predictions(model: Any, later: Any = None, **fields: Any) -> list[torch.Tensor]:
    """At each step; `later` is the model of the second half."""
    sampling = SamplingParam(num_inference_steps=STEPS, **{"guidance_scale": 3.0, **fields})
    predict = Predictor(sampling, STEPS, guide=same_guidance, cfg=Group("cfg"))
    return [
        alone(predict(
            later if later and step >= STEPS // 2 else model, At(step, torch.tensor(step), torch.zeros(SHAPE)),
            torch.zeros(SHAPE), torch.full(SHAPE[:1], step), {"row": 0}, {"row": 1},
        ))
        for step in range(STEPS)
    ]  # fmt: skip


def guided_by(guider: Any) -> list[torch.Tensor]:
    """What the reference makes of the same two predictions at each step."""
    table, made = Table(), []
    for step in range(STEPS):
        guider.set_state(step=step, num_inference_steps=STEPS, timestep=torch.tensor(step))
        both = guider.num_conditions == 2
        made.append(guider.forward(table.values[0, step], table.values[1, step] if both else None).pred)
    return made


@pytest.mark.parametrize("zeros", [0, 1, 3])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_zero_star_is_that_of_the_reference(zeros: int, rescale: float) -> None:
    from diffusers.guiders import ClassifierFreeZeroStarGuidance

    guider = ClassifierFreeZeroStarGuidance(guidance_scale=3.0, zero_init_steps=zeros, guidance_rescale=rescale)
    mine = predictions(Table(), cfg_zero_star=True, zero_init_steps=zeros, guidance_rescale=rescale)
    theirs = guided_by(guider)
    # of zero the reference makes NaN when it rescales
    assert all(torch.equal(one, torch.zeros(SHAPE)) for one in mine[:zeros])
    for one, other in zip(mine[zeros:], theirs[zeros:], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.25, 1.0), (0.13, 0.8)])
def test_the_interval_is_that_of_the_reference(interval: tuple[float, float]) -> None:
    from diffusers.guiders import ClassifierFreeGuidance

    table = Table()
    mine = predictions(table, guidance_interval=interval)
    theirs = guided_by(ClassifierFreeGuidance(guidance_scale=3.0, start=interval[0], stop=interval[1]))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
    first, last = (int(share * STEPS) for share in interval)
    assert [step for row, step in table.asked if row == 1] == list(range(first, last))


def test_the_projection_is_the_nearest_multiple() -> None:
    conditional, unconditional = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    nearest = projected(conditional, unconditional)
    rest = (conditional - nearest).flatten(1)
    assert (rest * unconditional.flatten(1)).sum(dim=1).abs().max() < 1e-4
    for sample in range(SHAPE[0]):
        factor = nearest[sample] / unconditional[sample]
        torch.testing.assert_close(factor, factor.flatten()[0].expand_as(factor))


def test_after_the_gate_the_last_difference_is_reused() -> None:
    table = Table()
    mine = predictions(table, cfg_gate_step=0.5)
    conditional, unconditional = table.values
    torch.testing.assert_close(mine[3], 3 * conditional[3] - 2 * unconditional[3])
    for step in range(4, STEPS):
        torch.testing.assert_close(mine[step], conditional[step] + 2 * (conditional[3] - unconditional[3]))
    assert [step for row, step in table.asked if row == 1] == [0, 1, 2, 3]


def test_every_few_steps_it_is_computed_anew() -> None:
    table = Table()
    mine = predictions(table, cfg_gate_step=0.25, cfg_gate_refresh=3)
    assert [step for row, step in table.asked if row == 1] == [0, 1, 4, 7]
    conditional, unconditional = table.values
    torch.testing.assert_close(mine[6], conditional[6] + 2 * (conditional[4] - unconditional[4]))


def test_zero_star_and_the_gate_reuse_the_projected_difference() -> None:
    table = Table()
    mine = predictions(table, cfg_gate_step=0.5, cfg_zero_star=True)
    conditional, unconditional = table.values
    difference = conditional[3] - projected(conditional[3], unconditional[3])
    torch.testing.assert_close(mine[5], conditional[5] + 2 * difference)


def test_the_difference_of_another_model_is_not_reused() -> None:
    first, second = Table(), Table(seed=1)
    mine = predictions(first, second, cfg_gate_step=0.25)
    assert [step for row, step in first.asked if row == 1] == [0, 1]
    assert [step for row, step in second.asked if row == 1] == [4]
    conditional, unconditional = second.values
    torch.testing.assert_close(mine[6], conditional[6] + 2 * (conditional[4] - unconditional[4]))
