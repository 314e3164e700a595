"""What a scheduler is: the timesteps of a schedule, and the step from one to the next."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch


class Scheduler(ABC):
    """A sampler. It remembers where in the schedule it is: the steps must be taken in order."""

    name: str
    """The class in `model_index.json`."""
    config: Mapping[str, Any]
    """What it was built from."""
    timesteps: torch.Tensor
    """[steps] of the schedule, falling; once `set_timesteps` was called."""

    @abstractmethod
    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Start a schedule of `num_inference_steps` steps; forgets the one before."""

    @abstractmethod
    def step(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The latents after the step at `timestep` (a scalar of `timesteps`), from the model's `prediction` there.

        All have the shape of `latents`.
        """
