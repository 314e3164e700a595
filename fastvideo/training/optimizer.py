"""Muon for a transformer's matrices, AdamW for everything else, as one optimizer.

Source: "Muon is Scalable for LLM Training" (arXiv 2502.16982), whose learning-rate match to AdamW is used, so that one
learning rate and schedule serves both.
"""

from typing import Any

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on the 2-D weights inside `blocks`, `torch.optim.AdamW` on the rest of `module`."""

    def __init__(self, module: nn.Module, blocks: nn.Module, lr: float, weight_decay: float = 0.01) -> None:
        matrices = [p for p in blocks.parameters() if p.requires_grad and p.ndim == 2]
        chosen = set(map(id, matrices))
        rest = [p for p in module.parameters() if p.requires_grad and id(p) not in chosen]
        self._muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
        super().__init__([{"params": matrices}, {"params": rest}], {"lr": lr})
        # one list of groups, so that whoever sets a learning rate reaches both
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._muon.step()
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]
