"""Brings loaded models into the state that a set of LoRAs asks for, and back: branches beside layers, sums in weights.

A low-rank change of a linear layer works beside it, unless the set is merged. All else is added to the weight itself: a
difference, and what changes something that is no linear layer. A weight that was added to gets its bits back from the
model's own files, so no copy of it is kept. Weights that are offloaded stay as they are where they are kept, and are
added to each time they are brought to the device.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvideo.configs.models.base import ParamNamesMapping
from fastvideo.distributed.groups import Groups
from fastvideo.distributed.offload import Offloaded
from fastvideo.distributed.placement import local_rows, reshard
from fastvideo.layers.lora import LowRank, check_adaptable, set_branch, takes_branch
from fastvideo.layers.residence import OnDevice
from fastvideo.models.dits.base import BaseDiT
from fastvideo.models.loader.checkpoint import open_safetensors
from fastvideo.models.loader.component_loader import blueprint
from fastvideo.models.loader.lora import Change, LoraFile, LoraSet
from fastvideo.models.loader.repo import ComponentSource, Repo
from fastvideo.models.loader.weights import load_into, shard_of
from fastvideo.utils import require


@dataclass(frozen=True)
class _Use:
    """A change, with the strength of its adapter."""

    change: Change
    strength: float

    @property
    def scale(self) -> float:
        return self.change.scale * self.strength


Uses = tuple[_Use, ...]


class Adapted:
    """The transformers of a pipeline on this rank, with the LoRAs that they have."""

    def __init__(self, repo: Repo, components: Mapping[str, object], groups: Groups, device: torch.device) -> None:
        """None at first. `components` are those of `repo`, spread over `groups`; they run on `device`."""
        self._models = {
            name: _AdaptedModel(model, repo.components[name], groups, device)
            for name, model in components.items()
            if name.startswith("transformer") and isinstance(model, nn.Module)
        }
        self._set = LoraSet()

    def adapt(self, loras: LoraSet) -> None:
        """Run with `loras` from now on, and with no others. After an error all is as it was before.

        Raises:
            ValueError: a file is not there or was changed, or a weight is one that cannot be changed.
        """
        try:
            self._apply(loras)
        except BaseException:
            self._apply(self._set)
            raise
        self._set = loras

    def _apply(self, loras: LoraSet) -> None:
        tensors = _Tensors()
        for name, model in self._models.items():
            uses = [
                _Use(change, strength)
                for adapter, strength in loras.adapters
                for change in adapter.changes.get(name, ())
                if strength
            ]
            model.apply(uses, loras.merged, tensors)


class _Tensors:
    """The tensors of LoRA files, each file opened once."""

    def __init__(self) -> None:
        self._open: dict[LoraFile, Any] = {}

    def __call__(self, file: LoraFile, name: str) -> torch.Tensor:
        if file not in self._open:
            self._open[file] = open_safetensors(file.path)
        return self._open[file].get_tensor(name)


class _AdaptedModel:
    """One transformer."""

    def __init__(self, model: nn.Module, source: ComponentSource, groups: Groups, device: torch.device) -> None:
        self._model, self._source = model, source
        self._sharded, self._device = groups.layout.fsdp, device
        self._residence = model.residence if isinstance(model, BaseDiT) else OnDevice()
        self._added: dict[str, Uses] = {}
        """What is in each parameter beside its own value."""
        self._beside: dict[str, Uses] = {}
        """What works beside each layer."""
        self._loaded = _stamps(source.weight_files)

    @cached_property
    def _mapping(self) -> ParamNamesMapping:
        return blueprint(self._source).mapping

    def apply(self, uses: Iterable[_Use], merged: bool, tensors: _Tensors) -> None:
        """Have `uses` in effect, and nothing else."""
        added: dict[str, Uses] = {}
        beside: dict[str, Uses] = {}
        for use in uses:
            name = use.change.target.name
            layer_name, _, leaf = name.rpartition(".")
            layer = self._model.get_submodule(layer_name)
            check_adaptable(layer, leaf, name)
            if use.change.full is None and not merged and takes_branch(layer, leaf):
                beside[layer_name] = (*beside.get(layer_name, ()), use)
            else:
                added[name] = (*added.get(name, ()), use)
        if isinstance(self._residence, Offloaded):
            self._residence.change(partial(self._add_on_the_way, added, tensors) if added else None)
        else:
            self._add_to_weights(added, tensors)
        for name in [*self._beside, *beside]:
            if self._beside.get(name) != beside.get(name):
                layer = self._model.get_submodule(name)
                set_branch(layer, [self._low_rank(layer, use, tensors) for use in beside.get(name, ())])
                self._beside[name] = beside.get(name, ())
        self._beside = beside

    def _add_on_the_way(self, added: Mapping[str, Uses], tensors: _Tensors, name: str, weight: torch.Tensor) -> None:
        """Add what `added` has for parameter `name` to `weight`, its copy on the device."""
        if name in added:
            self._sum(name, weight, (0, len(weight), len(weight)), added[name], tensors)

    def _add_to_weights(self, added: Mapping[str, Uses], tensors: _Tensors) -> None:
        """Have `added` in the parameters, and nothing else."""
        if self._sharded:
            reshard(self._model)
        with torch.no_grad():
            self._restore([name for name, before in self._added.items() if before != added.get(name)])
            for name, wanted in added.items():
                if name not in self._added:
                    self._added[name] = ()  # should this be stopped in the middle, it is restored
                    parameter = self._model.get_parameter(name)
                    memory, first, last = local_rows(parameter)
                    self._sum(name, memory, (first, last, parameter.shape[0]), wanted, tensors)
                    self._added[name] = wanted

    def _restore(self, names: list[str]) -> None:
        """Load the parameters `names` again."""
        if not names:
            return
        files = self._source.weight_files
        for path, stamp in zip(files, self._loaded, strict=True):
            require(_stamps([path]) == [stamp], "weights", str(path),
                    "have changed since the model was loaded, and a LoRA cannot be taken out without them",
                    "load the model again")  # fmt: skip
        load_into(self._model, files, self._mapping, only=names, what=f"component {self._source.name!r}")
        for name in names:
            del self._added[name]

    def _sum(self, name: str, memory: torch.Tensor, where: tuple[int, int, int], uses: Uses, tensors: _Tensors) -> None:
        """Add what `uses` change to `memory`: one sum in fp32, rounded once.

        Args:
            name: of the parameter.
            memory: this rank's part of it.
            where: which of its rows that is, start and stop, and how many there are.
            uses: changes of it.
            tensors: their files.
        """
        first, last, rows_here = where
        total = memory.float()  # in fp32 already, it is the memory itself
        shard = shard_of(self._model, name)
        for use in uses:
            target = use.change.target
            # the piece is rows begin and on of the parameter here, and rows skip and on of the whole piece
            height = rows_here // target.parts
            begin = target.part * height
            low, high = max(first, begin), min(last, begin + height)
            if low >= high:
                continue
            skip, columns = 0, slice(None)
            if shard is not None and shard.dim == 0:
                skip = shard.bounds(shard.full // target.parts)[0]
            elif shard is not None:
                columns = slice(*shard.bounds(shard.full))
            rows = slice(skip + low - begin, skip + high - begin)
            place = total[low - first : high - first]
            place.add_(self._difference(use, rows, columns, tensors, memory.device).view_as(place), alpha=use.scale)
        if total is not memory:
            memory.copy_(total)

    def _difference(
        self, use: _Use, rows: slice, columns: slice, tensors: _Tensors, device: torch.device
    ) -> torch.Tensor:
        """What a change adds to `rows` and `columns` of its weight, without its scale: fp32."""
        change = use.change
        if change.full is not None:
            whole = tensors(change.file, change.full)
            part = whole[rows] if whole.ndim == 1 else whole[rows, columns]
            return part.to(device, torch.float32)
        assert change.up is not None and change.down is not None
        up = tensors(change.file, change.up).flatten(1)[rows].to(device, torch.float32)
        down = tensors(change.file, change.down).flatten(1)[:, columns].to(device, torch.float32)
        return up @ down

    def _low_rank(self, layer: nn.Module, use: _Use, tensors: _Tensors) -> LowRank:
        """This rank's part of a change that works beside `layer`, in the dtype of its weight."""
        change = use.change
        assert change.up is not None and change.down is not None
        up = tensors(change.file, change.up).flatten(1).float() * use.scale
        down = tensors(change.file, change.down).flatten(1)
        shard = shard_of(layer, "weight")
        if shard is not None and shard.dim == 0:
            up = up[slice(*shard.bounds(len(up)))]
        elif shard is not None:
            down = down[:, slice(*shard.bounds(shard.full))]
        dtype, target = layer.get_parameter("weight").dtype, change.target
        return LowRank(down.to(self._device, dtype), up.to(self._device, dtype), target.part, target.parts)


def _stamps(files: Iterable[Path]) -> list[tuple[int, int]]:
    """Size and time of change of each file."""
    return [(status.st_size, status.st_mtime_ns) for status in (path.stat() for path in files)]
