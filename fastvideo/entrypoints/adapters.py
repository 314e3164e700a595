"""The LoRAs of a generator: which there are, which work, how strongly, and whether they are in the weights."""

import logging
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fastvideo.configs.base import require_bool
from fastvideo.entrypoints.streaming import Turn
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import init_logger
from fastvideo.models.loader.component_loader import Blueprint
from fastvideo.models.loader.lora import Adapter, LoraSet, load_adapter, transformers_of
from fastvideo.models.loader.lora_files import find_lora
from fastvideo.models.loader.repo import Repo
from fastvideo.models.loader.weights import file_hashes
from fastvideo.utils import nearest, require
from fastvideo.worker.executor import Executor

logger = init_logger(__name__)


@dataclass(frozen=True)
class Adapters:
    """A value: what changes it gives another, which counts once all processes have taken it on."""

    repo: Repo
    known: Mapping[str, Adapter] = field(default_factory=dict)
    """By nickname."""
    active: Mapping[str, float] = field(default_factory=dict)
    """The strength of those that work, by nickname, in the order in which they were set."""
    merged: bool = False

    def loras(self) -> LoraSet:
        """For the pipeline.

        Raises:
            ValueError: a file is not there any more, or is not what it was.
        """
        for nickname in self.active:
            adapter = self.known[nickname]
            require(file_hashes({file.name: file.path for file in adapter.files}) == adapter.hashes, "lora_path",
                    adapter.path, "was changed since it was set", "make another generator for the new one")  # fmt: skip
        return LoraSet(tuple((self.known[name], strength) for name, strength in self.active.items()), self.merged)

    def with_adapter(self, nickname: str, path: str | None, strength: float, accumulate: bool) -> "Adapters":
        """`nickname` at `strength`, beside those that work if `accumulate`, else alone; at 0 it does not work.

        Raises:
            ValueError: see `VideoGenerator.set_lora_adapter`.
        """
        require(isinstance(nickname, str) and bool(nickname), "lora_nickname", nickname, "must be a name")
        number = isinstance(strength, numbers.Real) and not isinstance(strength, bool)
        require(number and math.isfinite(strength), "strength", strength, "must be a finite number", "1 is as trained")
        require_bool("accumulate", accumulate)
        adapter = self._adapter(nickname, path)
        active = {**(self.active if accumulate else {}), nickname: float(strength)}
        if not strength:
            del active[nickname]
        return replace(self, known={**self.known, nickname: adapter}, active=active)

    def with_only(self, strengths: Mapping[str, float]) -> "Adapters":
        """Exactly these, in this order.

        Raises:
            ValueError: a name that is not known, or a strength that is no number.
        """
        adapters = replace(self, active={})
        for nickname, strength in strengths.items():
            adapters = adapters.with_adapter(nickname, None, strength, accumulate=True)
        return adapters

    def with_merged(self, merged: bool) -> "Adapters":
        """The same in the weights, or beside them.

        Raises:
            ValueError: none works.
        """
        what = "merge_lora_weights" if merged else "unmerge_lora_weights"
        if not self.active and merged >= self.merged:
            raise ValueError(f"{what}: no LoRA works; call set_lora_adapter first")
        return replace(self, merged=merged)

    def metadata(self) -> dict[str, Any] | None:
        """What a clip's file says of them; None when none works."""
        if not self.active:
            return None
        adapters = [
            {"nickname": name, "path": self.known[name].path, "strength": strength, "files": self.known[name].hashes}
            for name, strength in self.active.items()
        ]
        return {"adapters": adapters, "merged": self.merged}

    def _adapter(self, nickname: str, path: str | None) -> Adapter:
        known = self.known.get(nickname)
        if path is None and known is None:
            close = nearest(nickname, self.known)
            hint = f"did you mean {close!r}? or " if close else ""
            raise ValueError(f"lora_nickname={nickname!r}: no LoRA has this name; {hint}give its lora_path")
        if path is None or known is None:
            return known or load_adapter(nickname, str(path), self._models())
        same = path == known.path or find_lora(path, len(self._models())) == known.files
        require(same, "lora_nickname", nickname, f"is the LoRA of {known.path}, and lora_path={path!r} is another",
                "give it a name of its own")  # fmt: skip
        return known

    def _models(self) -> dict[str, Blueprint]:
        return transformers_of(self.repo)


class LoraMethods(ABC):
    """The methods of a generator that are about LoRAs."""

    args: FastVideoArgs

    def __init__(self, repo: Repo) -> None:
        """None at first, for the model of `repo`."""
        self._adapters = Adapters(repo)
        # a request and the LoRAs that it ran with belong together
        self._turn = Turn()

    @abstractmethod
    def _running(self) -> Executor:
        """Where the pipeline runs; raises a `RuntimeError` after `shutdown`."""

    def set_lora_adapter(
        self, lora_nickname: str, lora_path: str | None = None, strength: float = 1.0, accumulate: bool = False
    ) -> Adapter:
        """Have a LoRA change the videos from now on.

        Args:
            lora_nickname: a name of your own for it.
            lora_path: a `.safetensors` file, a folder with one, or a Hub id; not needed for a name that is known.
            strength: what its changes are multiplied with; 0 takes it out.
            accumulate: keep those that work; otherwise it works alone.

        Returns:
            What was compared with the model: how many keys are applied, and why each other is not. The log says it too.

        Raises:
            ValueError: no such file, a LoRA for another model, a nickname that is another's, or a strength that is no
                number, or options of the generator that do not go with it. What worked before works on.
            WorkerError: with several devices, a process failed by itself.
        """
        named = lora_path or lora_nickname
        replace(self.args, lora_path=named, lora_nickname="default").check_combinations(None)
        adapters = self._adapt(lambda now: now.with_adapter(lora_nickname, lora_path, strength, accumulate))
        return adapters.known[lora_nickname]

    @property
    def active_loras(self) -> dict[str, float]:
        """The strengths of the LoRAs that work, by nickname, in the order in which they were set."""
        return dict(self._adapters.active)

    def use_lora_adapters(self, strengths: Mapping[str, float]) -> None:
        """Have exactly these LoRAs change the videos from now on; without any, videos are again as without LoRAs.

        Args:
            strengths: by nickname, of LoRAs that `set_lora_adapter` was given before, at whatever strength.

        Raises:
            ValueError: a name that is not known, or a strength that is no number. What worked before works on.
            WorkerError: with several devices, a process failed by itself.
        """
        if list(strengths.items()) != list(self._adapters.active.items()):
            self._adapt(lambda now: now.with_only(strengths))

    def merge_lora_weights(self) -> None:
        """Add the LoRAs that work to the weights, so that they take no time; those set later are merged too.

        Raises:
            ValueError: none works.
        """
        self._adapt(lambda now: now.with_merged(True))

    def unmerge_lora_weights(self) -> None:
        """Take the LoRAs out of the weights, which get their bits back; they work on, beside the weights.

        Raises:
            ValueError: none works, or the model's files have changed since they were loaded.
        """
        self._adapt(lambda now: now.with_merged(False))

    def _adapt(self, change: Callable[[Adapters], Adapters]) -> Adapters:
        """Change the LoRAs, on all processes together."""
        executor = self._running()
        with self._turn:
            before, after = self._adapters, change(self._adapters)
            executor.adapt(after.loras())
            self._adapters = after
        for nickname in after.known.keys() - before.known.keys():
            adapter = after.known[nickname]
            logger.log(logging.WARNING if adapter.not_applied else logging.INFO, "%s", adapter)
        return after
