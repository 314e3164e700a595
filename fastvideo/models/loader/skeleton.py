"""Building a model without memory for its weights."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)


class _NoInitialisation(TorchFunctionMode):
    """Skips `torch.nn.init`: there is nothing to fill, and on the meta device a random fill imports the compiler, which
    takes longer than all else at the start of a program."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:  # C functions have none
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def skeleton(build: Callable[[], Model]) -> Model:
    """What `build` makes, with every parameter and buffer on the meta device."""
    with torch.device("meta"), _NoInitialisation():
        return build()
