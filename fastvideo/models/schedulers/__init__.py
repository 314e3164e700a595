"""Noise schedulers, by their names in `model_index.json`: built from a config that is checked."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from fastvideo.models.schedulers.base import Scheduler
from fastvideo.models.schedulers.flow import EulerFlow, SelfForcingFlow, TrigFlow, UniPCFlow
from fastvideo.utils import nearest, require, require_known, resolve

__all__ = ["SCHEDULERS", "DiffusersScheduler", "Scheduler", "build_scheduler", "check_scheduler"]


@dataclass(frozen=True, kw_only=True)
class SchedulerEntry:
    """A scheduler class that repos name."""

    reference: str | None
    """That of `diffusers`, as "module:Class"; None where it has none, and ours is all there is."""
    shift_key: str | None
    """The config key that shifts the noise schedule; None where nothing does."""
    own: Callable[[Mapping[str, Any]], Scheduler]
    """Our restatement, for the configs that flow-matching models have."""
    fixed: Mapping[str, Any]
    """What a config says, or leaves at these defaults, for ours to be the same."""
    free: tuple[str, ...]
    """Keys that ours heeds, and those that say nothing about such a config."""
    required: tuple[str, ...] = ()
    """Those of `fixed` whose default in `diffusers` is another value, so that the config must say them."""


SCHEDULERS: Mapping[str, SchedulerEntry] = MappingProxyType(
    {
        UniPCFlow.name: SchedulerEntry(
            reference=f"diffusers:{UniPCFlow.name}",
            shift_key="flow_shift",
            own=UniPCFlow,
            fixed={
                "prediction_type": "flow_prediction", "use_flow_sigmas": True, "predict_x0": True, "solver_order": 2,
                "lower_order_final": True,
                "solver_type": "bh2", "solver_p": None, "thresholding": False, "final_sigmas_type": "zero",
                "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
                "use_dynamic_shifting": False, "shift_terminal": None, "beta_schedule": "linear",
                "timestep_spacing": "linspace", "time_shift_type": "exponential", "trained_betas": None,
                "rescale_betas_zero_snr": False, "sigma_min": None, "sigma_max": None,
            },
            free=(
                "num_train_timesteps", "flow_shift", "disable_corrector", "beta_start", "beta_end",
                "dynamic_thresholding_ratio", "sample_max_value", "steps_offset",
            ),
            required=("prediction_type", "use_flow_sigmas"),
        ),
        EulerFlow.name: SchedulerEntry(
            reference=f"diffusers:{EulerFlow.name}",
            shift_key="shift",
            own=EulerFlow,
            fixed={
                "use_dynamic_shifting": False, "invert_sigmas": False, "shift_terminal": None,
                "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
                "stochastic_sampling": False, "time_shift_type": "exponential",
            },
            free=(
                "num_train_timesteps", "shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len",
            ),
        ),
        SelfForcingFlow.name: SchedulerEntry(
            reference=None,
            shift_key="shift",
            own=SelfForcingFlow,
            fixed={"inverse_timesteps": False, "reverse_sigmas": False},
            # how many steps it is made with, and whether for training, says nothing about a schedule that is set later
            free=(
                "num_train_timesteps", "shift", "sigma_max", "sigma_min", "extra_one_step", "num_inference_steps",
                "training",
            ),
        ),
        TrigFlow.name: SchedulerEntry(
            reference=None,
            shift_key=None,
            own=TrigFlow,
            fixed={},
            free=("num_train_timesteps", "sigma_max", "mid_timesteps"),
        ),
    }
)  # fmt: skip
"""By class name in `model_index.json`."""


class DiffusersScheduler(Scheduler):
    """A scheduler of `diffusers`, which it calls `inner`: for configs that ours do not restate."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.name = type(inner).__name__
        self.config = dict(inner.config)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        self.inner.set_timesteps(num_inference_steps, device=device)
        # or the first step would be looked up by its timestep, and rounded timesteps may repeat
        self.inner.set_begin_index(0)
        self.timesteps = self.inner.timesteps

    def step(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        stepped: torch.Tensor = self.inner.step(prediction, timestep, latents, return_dict=False)[0]
        return stepped

    def skip(self, steps: int) -> None:
        self.inner.set_begin_index(steps)
        self.timesteps = self.timesteps[steps:]

    def noised(self, data: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        if self.name == "FlowMatchEulerDiscreteScheduler":
            latents: torch.Tensor = self.inner.scale_noise(data, self.timesteps[:1], noise)
        else:
            latents = self.inner.add_noise(data, noise, self.timesteps[:1])
        return latents

    def clean(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """What a step's `prediction` says that the data is, for someone to look at; all have the shape of `latents`.

        On a flow the noisy latents are (1 - s) data + s noise and the prediction is noise - data, with s falling from
        1 to 0 as the timesteps do. Of another kind of prediction it is not known, and `latents` are given back.
        """
        config = self.inner.config
        if self.name != "FlowMatchEulerDiscreteScheduler" and config.get("prediction_type") != "flow_prediction":
            return latents
        return latents - timestep / config["num_train_timesteps"] * prediction.to(latents.dtype)


def check_scheduler(class_name: str) -> None:
    """Raise a `ValueError` that lists the choices unless `class_name` is in `SCHEDULERS`."""
    if class_name not in SCHEDULERS:
        close = nearest(class_name, SCHEDULERS)
        raise ValueError(
            f"scheduler class {class_name!r}: not known; "
            + (f"did you mean {close!r}? " if close else "")
            + f"known are {', '.join(SCHEDULERS)}"
        )


def build_scheduler(class_name: str, config: Mapping[str, Any], flow_shift: float | None = None) -> Scheduler:
    """The scheduler `class_name` with `config`: ours where it is the same, else that of `diffusers`.

    Args:
        class_name: a name in `SCHEDULERS`.
        config: its `scheduler_config.json`, parsed.
        flow_shift: replaces the shift that `config` gives; None leaves it.

    Raises:
        ValueError: an unknown class, a config key that the class does not know, or a value that it refuses.
    """
    check_scheduler(class_name)
    entry = SCHEDULERS[class_name]
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    if entry.shift_key is None:
        require(flow_shift is None, "flow_shift", flow_shift, f"{class_name} has no shift", "leave it None")
    else:
        if flow_shift is not None:
            values[entry.shift_key] = flow_shift
        shift = values.get(entry.shift_key, 1.0)
        require(isinstance(shift, (int, float)) and shift > 0, entry.shift_key, shift, "must be a number above 0")
    if _same(entry, values):
        return entry.own(values)
    if entry.reference is None:
        require_known(values, (*entry.fixed, *entry.free), f"config key of {class_name}")
        wrong = next(key for key, value in values.items() if entry.fixed.get(key, value) != value)
        raise ValueError(f"scheduler {class_name}: {wrong}={values[wrong]!r}: must be {entry.fixed[wrong]!r}")
    cls = resolve(entry.reference)
    # the class itself drops unknown keys with a warning
    require_known(values, list(inspect.signature(cls.__init__).parameters), f"config key of {class_name}")
    try:
        return DiffusersScheduler(cls.from_config(values))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"scheduler {class_name}: its config is refused: {error}; correct its JSON file") from None


def _same(entry: SchedulerEntry, values: Mapping[str, Any]) -> bool:
    """Whether our restatement does what `diffusers` does with the config `values`."""
    return all(key in values for key in entry.required) and all(
        key in entry.free or (key in entry.fixed and value == entry.fixed[key]) for key, value in values.items()
    )
