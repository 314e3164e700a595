"""Noise schedulers: those of `diffusers`, behind one function that checks what it is given."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from fastvideo.utils import nearest, require, require_known, resolve

SCHEDULERS: dict[str, tuple[str, str]] = {
    "UniPCMultistepScheduler": ("diffusers:UniPCMultistepScheduler", "flow_shift"),
    "FlowMatchEulerDiscreteScheduler": ("diffusers:FlowMatchEulerDiscreteScheduler", "shift"),
}
"""Class name in `model_index.json` to "module:Class" and the config key that shifts the noise schedule."""


class Scheduler:
    """A scheduler of `diffusers`, which it calls `inner`, behind the calls that the denoising loop makes."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """The class of `inner`."""
        return type(self.inner).__name__

    @property
    def config(self) -> dict[str, Any]:
        """The config of `inner`."""
        return dict(self.inner.config)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Start a schedule of `num_inference_steps` steps; forgets the one before."""
        self.inner.set_timesteps(num_inference_steps, device=device)
        # or the first step would be looked up by its timestep, and rounded timesteps may repeat
        self.inner.set_begin_index(0)

    @property
    def timesteps(self) -> torch.Tensor:
        """The timesteps [steps] of the schedule, falling."""
        timesteps: torch.Tensor = self.inner.timesteps
        return timesteps

    def step(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The latents after the step at `timestep` (a scalar of `timesteps`), from the model's `prediction` there.

        All have the shape of `latents`; the schedule's steps must be taken in order.
        """
        stepped: torch.Tensor = self.inner.step(prediction, timestep, latents, return_dict=False)[0]
        return stepped

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
    """The scheduler `class_name` of `diffusers` with `config`.

    Args:
        class_name: a name in `SCHEDULERS`.
        config: its `scheduler_config.json`, parsed.
        flow_shift: replaces the shift that `config` gives; None leaves it.

    Raises:
        ValueError: an unknown class, a config key that the class does not know, or a value that it refuses.
    """
    check_scheduler(class_name)
    reference, shift_key = SCHEDULERS[class_name]
    cls = resolve(reference)
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    # the class itself drops unknown keys with a warning
    require_known(values, list(inspect.signature(cls.__init__).parameters), f"config key of {class_name}")
    if flow_shift is not None:
        values[shift_key] = flow_shift
    shift = values.get(shift_key, 1.0)
    require(isinstance(shift, (int, float)) and shift > 0, shift_key, shift, "must be a number above 0")
    try:
        return Scheduler(cls.from_config(values))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"scheduler {class_name}: its config is refused: {error}; correct its JSON file") from None
