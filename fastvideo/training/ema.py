"""Exponential moving average of a module's parameters."""

import torch
from torch import nn


class EMA:
    """A slow copy of `module`'s parameters: after each step `average += (1 - decay) * (parameter - average)`.

    The decay ramps up from 0 as (1 + step) / (10 + step), so that the average forgets the initialisation.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must be in [0, 1)")
        self.decay = decay
        self.parameters = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards `module`'s parameters."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = list(self.parameters.values())
        current = [p.detach() for _, p in module.named_parameters()]
        torch._foreach_lerp_(averages, current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Set `module`'s parameters to the average."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.parameters[name])
