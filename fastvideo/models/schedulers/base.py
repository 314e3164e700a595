"""What a scheduler is: the timesteps of a schedule, and the step from one to the next."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch


class Scheduler:
    """A sampler. It remembers where in the schedule it is: the steps must be taken in order."""

    name: str
    """The class in `model_index.json`."""
    config: Mapping[str, Any]
    """What it was built from."""
    renoises: ClassVar[bool] = False
    """Whether a step needs noise, which `step` does not draw."""
    timesteps: torch.Tensor
    """[steps] of the schedule, falling; once `set_timesteps` was called."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Start a schedule of `num_inference_steps` steps; forgets the one before."""
        raise NotImplementedError

    def step(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The latents after the step at `timestep` (a scalar of `timesteps`), from the model's `prediction` there.

        All have the shape of `latents`.
        """
        raise NotImplementedError

    def clean(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """What a step's `prediction` says that the data is, for someone to look at; all have the shape of `latents`.

        Where it is not known, `latents` are given back.
        """
        return latents

    def skip(self, steps: int) -> None:
        """Leave out the first `steps` steps of a schedule that has not begun."""
        raise NotImplementedError

    def fork(self) -> dict[str, Any]:
        """Where in the schedule it is, for `resume`, which several requests may be at."""
        return copy.deepcopy(vars(self))

    def resume(self, state: dict[str, Any]) -> None:
        """Be where `state` is; the steps from here on are noted in it, until another one is resumed."""
        self.__dict__ = state

    def noised(self, data: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`data` with as much `noise` as the latents of the next step have; all have one shape."""
        raise NotImplementedError
