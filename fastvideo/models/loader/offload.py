"""Keeps the weights of a component away from the device while no stage uses it: in host memory, or in its files."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import nn

from fastvideo.configs.models.base import ParamNamesMapping, Target
from fastvideo.distributed.offload import Home, HostHome, Offloaded, Weights
from fastvideo.models.dits.base import BaseDiT
from fastvideo.models.encoders.base import ImageEncoder, TextEncoder
from fastvideo.models.loader.checkpoint import TensorInfo, merge_headers, read_header, stream_file
from fastvideo.models.loader.weights import fill, plan_loading
from fastvideo.models.vaes.base import BaseVAE
from fastvideo.platforms.cpu import return_freed_memory


class DiskHome:
    """The weights in their files, which are mapped while they are read and no longer."""

    def __init__(self, model: nn.Module, files: Sequence[Path], mapping: ParamNamesMapping, what: str = "") -> None:
        """The weights of `model`, which is on the meta device with the dtypes that it is to have, are in `files` under
        names that `mapping` translates; `what` they are is for messages.

        Raises:
            ValueError: the files do not fit the model.
        """
        headers = {path: read_header(path) for path in files}
        targets = plan_loading(model, merge_headers(headers.values()), mapping, what)
        self._places: dict[str, list[tuple[Path, TensorInfo, Target]]] = {}
        for path, header in headers.items():
            for name, info in header.items():
                if name in targets:
                    self._places.setdefault(targets[name].name, []).append((path, info, targets[name]))
        self._like = {name: torch.empty_like(x, device="meta") for name, x in model.state_dict().items()}

    def read(self, names: Collection[str], device: torch.device) -> Weights:
        """See `Home`."""
        files: dict[Path, dict[str, TensorInfo]] = {}
        targets: dict[str, Target] = {}
        for name in names:
            for path, info, target in self._places[name]:
                files.setdefault(path, {})[info.name] = info
                targets[info.name] = target
        weights = {name: torch.empty_like(self._like[name], device="cpu") for name in names}
        for path, infos in files.items():
            for name, tensor in stream_file(path, infos):
                fill(weights[targets[name].name], tensor, targets[name], None)
        return {name: tensor.to(device) for name, tensor in weights.items()}


def host_home(model: nn.Module, pin: bool = False) -> HostHome:
    """A home in host memory, where the weights of `model` are now; see `HostHome` for `pin`."""
    return HostHome(model.state_dict(keep_vars=True), pin)


def offload(model: nn.Module, home: Home, device: torch.device, *, by_layer: bool) -> None:
    """From now on `model`, a transformer, encoder or VAE, has its weights on `device` while a stage uses it only.

    Args:
        model: with the dtypes that its weights have at home.
        home: has its weights.
        device: to compute on.
        by_layer: whether the layers of a transformer or text encoder are brought one by one.
    """
    assert isinstance(model, BaseDiT | TextEncoder | ImageEncoder | BaseVAE)
    layers = tuple(model.blocks) if by_layer and isinstance(model, BaseDiT | TextEncoder) else ()
    model.residence = Offloaded(
        model, home, device, layers=layers, again=isinstance(model, BaseDiT), freed=return_freed_memory
    )
