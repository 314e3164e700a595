"""Schedulers: those of the reference, with a config that is checked."""

import inspect
from typing import Any

import pytest
import torch

from fastvideo.models.schedulers import SCHEDULERS, DiffusersScheduler, Scheduler, build_scheduler
from fastvideo.models.schedulers.flow import RenoisingFlow, warped
from fastvideo.utils import resolve
from tests.tiny_repos import make_scheduler

CLASSES = {"unipc": "UniPCMultistepScheduler", "euler": "FlowMatchEulerDiscreteScheduler"}


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("unipc", {}),
    ("unipc", {"flow_shift": 12.0, "disable_corrector": [0, 2]}),
    ("unipc", {"flow_shift": 1.0, "num_train_timesteps": 500}),
    ("euler", {}),
    ("euler", {"shift": 7.0, "num_train_timesteps": 500}),
]


def differences(ours: Scheduler, reference: Any, steps: int) -> list[float]:
    """The largest difference after each step, over the largest magnitude."""
    reference.set_timesteps(steps, device="cpu")
    ours.set_timesteps(steps, "cpu")
    assert torch.equal(ours.timesteps, reference.timesteps)
    assert len(ours.timesteps) == steps
    generator = torch.Generator().manual_seed(0)
    x = y = torch.randn(1, 2, 3, 4, 5, generator=generator)
    found = []
    for t in reference.timesteps:
        prediction = torch.randn(x.shape, generator=generator)
        x = ours.step(prediction, t, x)
        y = reference.step(prediction, t, y, return_dict=False)[0]
        found.append(((x - y).abs().max() / y.abs().max()).item())
    return found


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
@pytest.mark.parametrize(("kind", "changes"), CONFIGS)
def test_the_same_steps_as_the_reference(kind: str, changes: dict[str, Any], steps: int) -> None:
    said = {key: value for key, value in make_scheduler(kind, 3.0).config.items() if not key.startswith("_")}
    config = {**said, **changes}
    ours = build_scheduler(CLASSES[kind], config)
    assert not isinstance(ours, DiffusersScheduler)
    assert ours.name == CLASSES[kind]
    # ours computes coefficients in float64 and sums in another order: fp32 rounding, which predictions of unit spread
    # over many steps let grow
    reference = type(make_scheduler(kind, 3.0)).from_config(config)
    reference_begins = reference.set_timesteps
    reference.set_timesteps = lambda *args, **kwargs: (reference_begins(*args, **kwargs), reference.set_begin_index(0))
    assert max(differences(ours, reference, steps)) < 1e-5


def test_the_shift_that_was_asked_for() -> None:
    config = make_scheduler("unipc", 3.0).config
    assert max(differences(build_scheduler(CLASSES["unipc"], config, 5.0), make_scheduler("unipc", 5.0), 4)) < 1e-6


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**FLOW, "solver_order": 3},
        {**FLOW, "lower_order_final": False},
        {**FLOW, "solver_type": "bh1"},
        {**FLOW, "use_karras_sigmas": True},
        {"prediction_type": "flow_prediction"},
    ],
)
def test_another_config_is_left_to_the_reference(config: dict[str, Any]) -> None:
    scheduler = build_scheduler(CLASSES["unipc"], config)
    assert isinstance(scheduler, DiffusersScheduler)
    scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) == 4


@pytest.mark.parametrize("kind", CLASSES)
def test_the_keys_of_the_table_are_those_of_the_reference(kind: str) -> None:
    entry = SCHEDULERS[CLASSES[kind]]
    parameters = dict(inspect.signature(resolve(entry.reference).__init__).parameters)
    del parameters["self"]
    assert set(parameters) == {*entry.fixed, *entry.free}
    defaults = {key: parameters[key].default for key in entry.fixed if key not in entry.required}
    assert defaults == {key: value for key, value in entry.fixed.items() if key not in entry.required}


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
    for name, entry in SCHEDULERS.items():
        assert build_scheduler(name, {}, None if entry.shift_key is None else 3.0).name == name


def test_the_levels_of_self_forcing() -> None:
    """As its authors' scheduler has them with the published config: s in steps of 1/1000 from 1, shifted by 5."""
    config = {"num_inference_steps": 1000, "shift": 5.0, "sigma_min": 0.0, "extra_one_step": True, "training": True}
    scheduler = build_scheduler("SelfForcingFlowMatchScheduler", config)
    scheduler.set_timesteps(1000)
    s = torch.linspace(1, 0, 1001)[:-1]
    assert torch.allclose(scheduler.timesteps, 1000 * 5 * s / (1 + 4 * s), atol=1e-3)
    # a model that predicts the velocity of a straight line is followed to its end
    data, noise = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0)).unbind()
    x = noise
    scheduler.set_timesteps(7)
    for t in scheduler.timesteps:
        x = scheduler.step(noise - data, t, x)
    assert torch.allclose(x, data, atol=1e-5)


def test_the_steps_of_self_forcing() -> None:
    steps = warped((1000, 750, 500, 250), 5.0)
    assert steps == pytest.approx((1000, 937.5, 2500 / 3, 625))
    flow = RenoisingFlow(steps, 5.0)
    assert flow.sigmas == pytest.approx([1, 0.9375, 2.5 / 3, 0.625, 0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"reverse_sigmas": True}, "SelfForcingFlowMatchScheduler: reverse_sigmas=True: must be False"),
        ({"shft": 5.0}, "'shft': unknown config key of SelfForcingFlowMatchScheduler; did you mean 'shift'"),
    ],
)
def test_a_config_of_self_forcing_that_does_not_fit(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_scheduler("SelfForcingFlowMatchScheduler", config)
