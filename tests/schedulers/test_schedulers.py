"""Schedulers: those of the reference, with a config that is checked."""

from typing import Any

import pytest
import torch

from fastvideo.models.schedulers import SCHEDULERS, build_scheduler
from tests.tiny_repos import make_scheduler

CLASSES = {"unipc": "UniPCMultistepScheduler", "euler": "FlowMatchEulerDiscreteScheduler"}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("shift", [None, 5.0])
def test_the_same_steps_as_the_reference(kind: str, shift: float | None) -> None:
    reference = make_scheduler(kind, shift or 3.0)
    scheduler = build_scheduler(CLASSES[kind], make_scheduler(kind, 3.0).config, shift)
    assert scheduler.name == CLASSES[kind]
    reference.set_timesteps(4, device="cpu")
    scheduler.set_timesteps(4, "cpu")
    assert torch.equal(scheduler.timesteps, reference.timesteps)
    generator = torch.Generator().manual_seed(0)
    ours = theirs = torch.randn(1, 2, 3, 4, 5, generator=generator)
    for t in reference.timesteps:
        prediction = torch.randn(ours.shape, generator=generator)
        ours = scheduler.step(prediction, t, ours)
        theirs = reference.step(prediction, t, theirs, return_dict=False)[0]
        assert torch.equal(ours, theirs)


def test_a_second_schedule_forgets_the_first() -> None:
    scheduler = build_scheduler("UniPCMultistepScheduler", make_scheduler("unipc", 3.0).config)
    latents = torch.randn(1, 2, 1, 4, 4)
    results = []
    for _ in range(2):
        scheduler.set_timesteps(3)
        x = latents
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * x, t, x)
        results.append(x)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FlowMatchEulerDiscreteSchedule", "did you mean 'FlowMatchEulerDiscreteScheduler'"),
        ("PNDMScheduler", "known are UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_an_unknown_class_lists_the_choices(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"scheduler class '{name}': not known; .*{message}"):
        build_scheduler(name, {})


BAD: list[tuple[dict[str, Any], float | None, str]] = [
    ({"flowshift": 3.0}, None, "'flowshift': unknown config key of UniPCMultistepScheduler; did you mean 'flow_shift'"),
    ({"flow_shift": 0}, None, "flow_shift=0: must be a number above 0"),
    ({"flow_shift": "3"}, None, "flow_shift='3': must be a number above 0"),
    ({}, -1.0, "flow_shift=-1.0: must be a number above 0"),
    ({"beta_schedule": "cosine9"}, None, "UniPCMultistepScheduler: its config is refused: cosine9"),
]


@pytest.mark.parametrize(("config", "shift", "message"), BAD)
def test_a_config_that_does_not_fit(config: dict[str, Any], shift: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_scheduler("UniPCMultistepScheduler", config, shift)


def test_every_class_of_the_table_can_be_built() -> None:
    for name in SCHEDULERS:
        assert build_scheduler(name, {}, 3.0).name == name
