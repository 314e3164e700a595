"""What `torch_compile_kwargs` may say, checked against the PyTorch that is installed before any weight is read."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.utils import nearest, require

NAME = "torch_compile_kwargs"
MARKS = ("guard_filter_fn", "use_aoti")
"""What `torch.compile` itself takes out of `options`."""


def check_compile_options(args: FastVideoArgs) -> None:
    """Check the keywords of `torch.compile`, whose own errors would come when a model has been loaded.

    Raises:
        ValueError: a keyword, mode, backend or option that this version of PyTorch does not have, or one that leaves
            nothing compiled; with those that there are.
    """
    given = args.torch_compile_kwargs
    if not given:
        return
    keywords = [key for key in inspect.signature(torch.compile).parameters if key != "model"]
    _require_one_of(given, "keyword", given, keywords)
    for key in ("fullgraph", "dynamic", "disable"):
        value = given.get(key)
        require(value is None or isinstance(value, bool), NAME, given, f"{key} must be True or False")
    require(not given.get("disable"), NAME, given, "disable leaves nothing compiled", "set enable_torch_compile=False")
    backend = given.get("backend")
    if backend is None or backend == "inductor":
        _check_inductor(given)
    elif isinstance(backend, str):
        _require_one_of(given, "backend", [backend], torch._dynamo.list_backends(None))
        require(given.get("mode") in (None, "default"), NAME, given, f"mode is about inductor, and not {backend}",
                "leave one of them out")  # fmt: skip
    else:
        require(callable(backend), NAME, given, "backend must be a name or a function")
    _try(given)


def _check_inductor(given: dict[str, Any]) -> None:
    mode, options = given.get("mode"), given.get("options") or {}
    if mode is not None:
        _require_one_of(given, "mode", [mode], torch._inductor.list_mode_options())
    if options:
        known = [*torch._inductor.list_options(), *MARKS]
        _require_one_of(given, "option", (str(key).replace("-", "_") for key in options), known)


def _require_one_of(given: dict[str, Any], what: str, names: Iterable[object], known: Iterable[str]) -> None:
    choices = sorted(known)
    for name in names:
        close = nearest(str(name), choices)
        listed = ", ".join(choices) if len(choices) < 50 else "those of torch._inductor.list_options()"
        require(name in choices, NAME, given, f"torch.compile has no {what} {name!r}",
                (f"did you mean {close!r}? " if close else "") + f"there are {listed}")  # fmt: skip


def _try(given: dict[str, Any]) -> None:
    """Compile nothing, to see what else PyTorch refuses: the type of an option, or two that do not go together."""
    options = given.get("options")
    # it takes some of the options out
    own = {**given, "options": dict(options)} if options else given
    try:
        torch.compile(_nothing, **own)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{NAME}={given!r}: torch.compile refuses it; {reason}") from None


def _nothing(x: Any) -> Any:
    return x
