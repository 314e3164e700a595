"""Samplers of flow matching, whose latents at noise level s are (1 - s) * data + s * noise and whose models predict the
velocity, noise - data.

They are restated here, in a few lines each, since those of `diffusers` take two seconds to import. What they are
compared with: `diffusers/schedulers/scheduling_flow_match_euler_discrete.py` and
`diffusers/schedulers/scheduling_unipc_multistep.py`. Coefficients are computed in float64.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fastvideo.models.schedulers.base import Scheduler


def shifted(sigmas: "np.ndarray[Any, Any]", shift: float) -> "np.ndarray[Any, Any]":
    """Noise levels `sigmas` moved towards noise by `shift` (Stable Diffusion 3, arXiv 2403.03206, section 5.3.2)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


class FlowScheduler(Scheduler):
    """What the samplers of a flow share."""

    sigmas: list[float]
    """The noise level before each step, and 0."""
    index: int
    """Of the next step."""

    def __init__(self, config: Mapping[str, Any], shift: float) -> None:
        self.config = config
        self.shift = float(shift)
        self.train_timesteps = int(config.get("num_train_timesteps", 1000))

    def clean(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        return latents - timestep / self.train_timesteps * prediction.float()

    def skip(self, steps: int) -> None:
        self.index = steps
        self.timesteps = self.timesteps[steps:]

    def noised(self, data: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        sigma = self.sigmas[self.index]
        return (1 - sigma) * data + sigma * noise


class EulerFlow(FlowScheduler):
    """Euler's method along the flow (arXiv 2210.02747)."""

    name = "FlowMatchEulerDiscreteScheduler"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config, config.get("shift", 1.0))

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        # the levels lie between the shifted ones of the first and the last training step, and are then shifted again
        ends = shifted(np.array([1.0, 1 / self.train_timesteps], dtype=np.float32), self.shift).astype(np.float32)
        first, last = (float(end) * self.train_timesteps for end in ends)
        spread = np.linspace(first, last, num_inference_steps)
        sigmas = torch.from_numpy(shifted(spread / self.train_timesteps, self.shift)).float()
        self.sigmas = [*sigmas.tolist(), 0.0]
        self.timesteps = (sigmas * self.train_timesteps).to(device)
        self.index = 0

    def step(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        sigma, following = self.sigmas[self.index : self.index + 2]
        self.index += 1
        return latents + (following - sigma) * prediction.float()


class SelfForcingFlow(EulerFlow):
    """Euler's method at the noise levels of Self-Forcing (arXiv 2506.08009), which repos of such models name.

    `diffusers` has no such class. Its config says where the levels begin and end before they are shifted, and whether
    the end is one of them.
    """

    name = "SelfForcingFlowMatchScheduler"

    def __init__(self, config: Mapping[str, Any]) -> None:
        FlowScheduler.__init__(self, config, config.get("shift", 3.0))

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        first, last = self.config.get("sigma_max", 1.0), self.config.get("sigma_min", 0.003 / 1.002)
        open_end = bool(self.config.get("extra_one_step", False))
        sigmas = shifted(np.linspace(first, last, num_inference_steps + open_end)[:num_inference_steps], self.shift)
        self.sigmas = [*sigmas.tolist(), 0.0]
        self.timesteps = torch.tensor(self.sigmas[:-1], dtype=torch.float32, device=device) * self.train_timesteps
        self.index = 0


class UniPCFlow(FlowScheduler):
    """UniPC of second order with B(h) = e^h - 1, on predictions of the data (arXiv 2302.04867).

    With m the predicted data and l = log((1 - s) / s), a step from s to t multiplies the latents by t / s and adds
    multiples of m and of its differences: the predictor's, and once m at t is known, the corrector's.
    """

    name = "UniPCMultistepScheduler"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config, config.get("flow_shift", 1.0))
        self.uncorrected = frozenset(config.get("disable_corrector", ()))

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        spread = np.linspace(1, 1 / self.train_timesteps, num_inference_steps + 1)[:-1]
        sigmas = shifted(spread, self.shift)
        if abs(sigmas[0] - 1) < 1e-6:
            sigmas[0] -= 1e-6  # or its logarithm were infinite
        self.timesteps = torch.from_numpy(sigmas * self.train_timesteps).to(device=device, dtype=torch.int64)
        self.sigmas = [*sigmas.astype(np.float32).tolist(), 0.0]
        self.index = 0
        self.order = 0
        self.data: list[torch.Tensor] = []
        """Predictions of the data, the last one first; as many as are needed."""
        self.start: torch.Tensor | None = None
        """The latents that the last step started from."""

    def step(self, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        data = latents - self.sigmas[self.index] * prediction.float()
        if self.start is not None and self.index - 1 not in self.uncorrected:
            latents = self._correct(self.start, data)
        left = len(self.sigmas) - 1 - self.index
        self.data = [data, *self.data[:1]]
        self.order = min(2, left, len(self.data))
        self.start = latents
        following = self._predict(latents)
        self.index += 1
        return following

    def _predict(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents at the next noise level."""
        sigma, following = self.sigmas[self.index : self.index + 2]
        growth, ratio = self._growth(self.index), self._ratio(self.index)
        result = (following / sigma) * latents - ((1 - following) * growth) * self.data[0]
        if self.order == 2:
            result = result - ((1 - following) * growth * 0.5 / ratio) * (self.data[1] - self.data[0])
        return result

    def _correct(self, latents: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        """The latents at this noise level, from those that the last step started from and from `data` here."""
        sigma, here = self.sigmas[self.index - 1 : self.index + 1]
        growth = self._growth(self.index - 1)
        change = data - self.data[0]
        if self.order == 1:
            change = 0.5 * change
        else:
            # two unknown weights: of the difference before, and of the one that `data` makes known
            step = -self._step(self.index - 1)
            first = (growth / step - 1) / growth
            second = ((growth / step - 1) / step - 0.5) * 2 / growth
            ratio = self._ratio(self.index - 1)
            before = (first - second) / (1 - ratio)
            change = (before / ratio) * (self.data[1] - self.data[0]) + (first - before) * change
        return (here / sigma) * latents - ((1 - here) * growth) * (self.data[0] + change)

    def _log_ratio(self, index: int) -> float:
        """log((1 - s) / s) at noise level number `index`."""
        sigma = self.sigmas[index]
        return math.log(1 - sigma) - math.log(sigma) if sigma > 0 else math.inf

    def _step(self, index: int) -> float:
        """h, the change of the log ratio in step number `index`."""
        return self._log_ratio(index + 1) - self._log_ratio(index)

    def _growth(self, index: int) -> float:
        """e^-h - 1 of step number `index`."""
        return math.expm1(-self._step(index))

    def _ratio(self, index: int) -> float:
        """How far the noise level before step number `index` lies back, in units of the step; 0 in the first."""
        return -self._step(index - 1) / self._step(index) if index else 0.0


def warped(steps: Sequence[int], shift: float) -> tuple[float, ...]:
    """The timesteps `steps` of a schedule of 1000 without a shift, in one with it."""
    return tuple((1000 * shifted(np.array(steps) / 1000, shift)).tolist())


class RenoisingFlow(FlowScheduler):
    """A few fixed timesteps, at each of which the data is predicted, and then noised again for the next one (DMD2,
    arXiv 2405.14867, section 4.4). The noise level of a timestep is that of the nearest of the shifted training
    timesteps."""

    name = "RenoisingFlow"
    renoises = True

    def __init__(self, steps: Sequence[float], shift: float) -> None:
        super().__init__({"shift": shift}, shift)
        trained = shifted(np.arange(self.train_timesteps, 0, -1) / self.train_timesteps, self.shift).astype(np.float32)
        nearest = [np.abs(trained * self.train_timesteps - step).argmin() for step in steps]
        self.steps = tuple(steps)
        self.sigmas = [*trained[nearest].tolist(), 0.0]

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        assert num_inference_steps == len(self.steps), "the model has its own steps"
        self.timesteps = torch.tensor(self.steps, device=device)
        self.index = 0

    @property
    def last(self) -> bool:
        """Whether the next step is the last."""
        return self.index == len(self.sigmas) - 2

    def renoise(self, prediction: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """A step: the predicted data, with `noise` for the next one; None after the last. All have one shape."""
        sigma, following = self.sigmas[self.index : self.index + 2]
        self.index += 1
        data = latents - sigma * prediction.float()
        return data if noise is None else (1 - following) * data + following * noise


TRIGFLOW_ANGLES = (1.5, 1.4, 1.0)
"""Where the published sampler of rCM predicts the data again, after the start: the first so many of them."""


class TrigFlow(RenoisingFlow):
    """As few steps as a consistency model is asked for, from 1 to 4 (rCM, arXiv 2510.08431; TrigFlow is of arXiv
    2410.11081).

    TrigFlow counts noise as an angle, with latents cos(a) data + sin(a) noise. The same latents, scaled, lie on the
    flow at noise level sin(a) / (sin(a) + cos(a)). The start is at the angle whose tangent is `sigma_max`, and is that
    level's share of the noise alone.
    """

    name = "RCMScheduler"

    def __init__(self, config: Mapping[str, Any]) -> None:
        FlowScheduler.__init__(self, config, 1.0)
        self.config = {"num_train_timesteps": self.train_timesteps, **config}
        middle = config.get("mid_timesteps")
        self.angles = (math.atan(config.get("sigma_max", 80.0)), *(TRIGFLOW_ANGLES if middle is None else middle))

    @property
    def most(self) -> int:
        """Steps that there are angles for."""
        return len(self.angles)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        assert 1 <= num_inference_steps <= self.most, "the model has its own steps"
        angles = self.angles[:num_inference_steps]
        self.sigmas = [*(math.sin(angle) / (math.sin(angle) + math.cos(angle)) for angle in angles), 0.0]
        self.timesteps = torch.tensor(self.sigmas[:-1], dtype=torch.float32, device=device) * self.train_timesteps
        self.index = 0
