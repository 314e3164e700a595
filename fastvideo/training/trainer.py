"""A training loop that can be killed at any moment and resumed to the same result."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from fastvideo.logger import init_logger
from fastvideo.training.ema import EMA

logger = init_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and how fast to train, and what to keep.

    The learning rate warms up, stays, and falls along a cosine over the last `cooldown` share of the steps: with a
    small share, a run can be made longer or shorter until the fall begins.
    `precision` is that of matrix products and convolutions (autocast); parameters and optimizer state are fp32.
    """

    output_dir: Path
    steps: int
    lr: float
    warmup_steps: int = 100
    final_lr_ratio: float = 0.02
    cooldown: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    precision: str = "bf16"
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 250

    def lr_at(self, step: int) -> float:
        """The learning rate at `step`: `lr * final_lr_ratio` at the last."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        begin = max(self.warmup_steps, (1 - self.cooldown) * self.steps)
        fallen = min(1.0, max(0.0, (step - begin) / max(1.0, self.steps - begin)))
        return self.lr * (self.final_lr_ratio + (1 - self.final_lr_ratio) * (1 + math.cos(math.pi * fallen)) / 2)


@dataclass(frozen=True)
class StepInfo:
    """What a loss function may depend on: the step, its share of the whole, and a generator of that step's own."""

    step: int
    progress: float
    rng: np.random.Generator


def device_of(module: nn.Module) -> torch.device:
    """Where `module`'s parameters are."""
    return next(module.parameters()).device


def autocast(module: nn.Module, enabled: bool = True) -> torch.autocast:
    """bf16 matrix products and convolutions on the device of `module`."""
    return torch.autocast(device_of(module).type, torch.bfloat16, enabled=enabled)


def averaged(checkpoint: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The averaged parameters that a `Trainer` has written to `checkpoint`, on the CPU wherever that was.

    Only those whose names begin with `prefix`, which is left out: a model without what helped to train it.
    """
    state: dict[str, torch.Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True)["ema"]
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


Metrics = dict[str, float]
LossFunction = Callable[[StepInfo], tuple[torch.Tensor, Metrics]]


class Trainer:
    """Minimises `loss(info) -> (loss, metrics)` over `module`'s trainable parameters.

    Each step's randomness (`info.rng` and torch's global generator) depends on the seed and the step alone, so that
    a run that was killed and resumed draws what an undisturbed one draws. In `output_dir` it keeps `last.pt`
    (written to a temporary name and renamed) and `log.jsonl`.
    """

    def __init__(
        self,
        module: nn.Module,
        config: TrainerConfig,
        loss: LossFunction,
        evaluate: Callable[[int], Metrics] | None = None,
        evaluate_every: int = 1000,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.module, self.config, self.loss = module, config, loss
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.ema = EMA(module, config.ema_decay)
        self.step = 0
        self.trainable = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = optimizer or torch.optim.AdamW(
            self.trainable, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        for group in self.optimizer.param_groups:
            group.setdefault("lr_scale", group["lr"] / config.lr)
        config.output_dir.mkdir(parents=True, exist_ok=True)
        self._stop = False
        self.resume()

    @property
    def checkpoint(self) -> Path:
        return self.config.output_dir / "last.pt"

    def resume(self) -> None:
        """Go on from `last.pt` where there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=device_of(self.module), weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.parameters = state["ema"]
        self.step = state["step"]
        logger.info("resumed %s at step %d", self.checkpoint, self.step)

    def save(self) -> None:
        """Write `last.pt`."""
        temporary = self.checkpoint.with_suffix(".tmp")
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.parameters,
            "step": self.step,
        }
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def run(self) -> None:
        """Train to `config.steps`; on SIGTERM or Ctrl-C save, then raise KeyboardInterrupt."""
        with self._stop_signals():
            since, started = self.step, time.monotonic()
            while self.step < self.config.steps:
                metrics = self._one_step()
                self.step += 1
                if self.step % self.config.log_every == 0:
                    metrics["seconds"] = (time.monotonic() - started) / (self.step - since)
                    self._log(metrics)
                    since, started = self.step, time.monotonic()
                if self.evaluate is not None and self.step % self.evaluate_every == 0:
                    self._log(self._evaluate_average())
                    since, started = self.step, time.monotonic()
                if self.step % self.config.checkpoint_every == 0 or self._stop:
                    self.save()
                if self._stop:
                    raise KeyboardInterrupt
            self.save()

    def _one_step(self) -> Metrics:
        config, step = self.config, self.step
        torch.manual_seed(config.seed * 1_000_003 + step)
        info = StepInfo(step, step / config.steps, np.random.default_rng((config.seed, step)))
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(step) * group["lr_scale"]
        with autocast(self.module, enabled=config.precision == "bf16"):
            loss, metrics = self.loss(info)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss={loss.item()} at step {step}: lower the learning rate (now {config.lr})")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trainable, config.grad_clip)
        self.optimizer.step()
        self.ema.update(self.module, step)
        return {"loss": loss.item(), "grad_norm": norm.item(), "lr": config.lr_at(step), **metrics}

    def _evaluate_average(self) -> Metrics:
        """`evaluate` on the averaged parameters; the trained ones are put back."""
        assert self.evaluate is not None
        kept = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.ema.copy_to(self.module)
        self.module.eval()
        with torch.no_grad():
            metrics = self.evaluate(self.step)
            for name, parameter in self.module.named_parameters():
                parameter.copy_(kept[name])
        self.module.train()
        return metrics

    def _log(self, metrics: dict[str, Any]) -> None:
        line = {"step": self.step, **metrics}
        with (self.config.output_dir / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        text = "  ".join(f"{key} {value:.4g}" for key, value in line.items() if key != "step")
        logger.info("step %d/%d  %s", self.step, self.config.steps, text)

    @contextmanager
    def _stop_signals(self) -> Iterator[None]:
        def stop(signum: int, frame: FrameType | None) -> None:
            self._stop = True

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
