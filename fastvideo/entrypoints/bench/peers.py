"""What is measured: ours, the reference, and what else is installed."""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import torch

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.entrypoints.bench.records import COMPILED, EAGER, OURS, OURS_COMPILED
from fastvideo.entrypoints.bench.wan import Inputs, Kind
from fastvideo.entrypoints.reference import check_packages, load_reference, quiet
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.component_loader import blueprint, load_components
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.platforms import DTYPES
from fastvideo.utils import resolve

ENTRY_POINTS = "fastvideo_bench"
"""Group of entry points of packages that add a peer: each names a class without arguments that is a `Peer`."""

Run = Callable[[Inputs], torch.Tensor]


class Peer(Protocol):
    """An implementation that runs component cases."""

    name: str
    """The heading of its column."""

    def why_not(self, device: str) -> str | None:
        """The reason why it cannot run on this machine and device; None when it can."""

    def load(self, repo: Path, kind: Kind, precision: str, device: str) -> Run:
        """Load the component of `kind` and give the function that runs it.

        Args:
            repo: a Diffusers-style repo with that component.
            kind: which component, and what it is given: `kind.inputs` says with which names and shapes.
            precision: "bf16" or "fp32".
            device: "cpu" or "cuda".

        Returns:
            A function from inputs, on the device and in fp32, to the output, which equals that of the reference.
        """


class Ours:
    """This package, as its own loader sets it up."""

    name = OURS
    compiled = False
    """Under `enable_torch_compile`."""

    def why_not(self, device: str) -> str | None:
        return None

    def load(self, repo: Path, kind: Kind, precision: str, device: str) -> Run:
        source = resolve_repo(repo)
        args = FastVideoArgs.from_kwargs(repo, device=device, precision=precision, enable_torch_compile=self.compiled)
        config = PipelineConfig().with_precision(precision)
        model = load_components(source, tuple(source.components), args, config, progress=False)[kind.component]
        return lambda inputs: kind.ours(model, inputs)


class OursCompiled(Ours):
    """The same, with blocks that are compiled."""

    name = OURS_COMPILED
    compiled = True


class Reference:
    """`diffusers` and `transformers`, as their own loaders set them up."""

    def __init__(self, name: str, compiled: bool) -> None:
        self.name = name
        self.compiled = compiled

    def why_not(self, device: str) -> str | None:
        try:
            check_packages()
        except ImportError as error:
            return str(error)
        return None

    def load(self, repo: Path, kind: Kind, precision: str, device: str) -> Run:
        with quiet():
            model: Any = load_reference(blueprint(resolve_repo(repo).components[kind.component]), DTYPES[precision])
        model = model.to(device).requires_grad_(False)
        if self.compiled:
            model = kind.compiled(model)
        return lambda inputs: kind.reference(model, inputs)


def find_peers() -> dict[str, Peer]:
    """All by name, in the order of the columns; those of other packages last."""
    peers: list[Peer] = [Ours(), OursCompiled()]
    peers += [Reference(EAGER, compiled=False), Reference(COMPILED, compiled=True)]
    peers += [resolve(point.value)() for point in entry_points(group=ENTRY_POINTS)]
    return {peer.name: peer for peer in peers}
