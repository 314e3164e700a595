"""Runs a model without numbers, and counts what its operators would hold, compute and move.

Tensors are on the meta device: they have shapes and no memory.
"""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

MATMUL, CONVOLUTION, ATTENTION = "matmul", "convolution", "attention"
_aten = torch.ops.aten


class Trace(TorchDispatchMode):
    """Counts while it is entered. What was there before does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        """Operations, by kind."""
        self.moved = 0
        """Bytes that other operators read and write."""
        self.peak = 0
        """The most bytes that were held at once."""
        self.largest = 0
        """Bytes of the largest block."""
        self._live = 0
        self._known: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Operations of all kinds."""
        return sum(self.flops.values())

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x for x in (out if isinstance(out, list | tuple) else (out,)) if isinstance(x, torch.Tensor)]
        new = sum(self._note(x.untyped_storage()) for x in made)
        kind, flops = _work(func, args, made)
        if kind is None:
            self.moved += 2 * new
        else:
            self.flops[kind] += flops
        self.peak = max(self.peak, self._live)
        return out

    def _note(self, storage: torch.UntypedStorage) -> int:
        """Bytes of `storage` if it is new, until it goes."""
        key = storage._cdata
        if key in self._known:
            return 0
        nbytes = storage.nbytes()
        self._known[key] = nbytes
        self._live += nbytes
        self.largest = max(self.largest, nbytes)
        weakref.finalize(storage, self._forget, key)
        return nbytes

    def _forget(self, key: int) -> None:
        self._live -= self._known.pop(key)


def _work(func: Any, args: tuple[Any, ...], made: list[torch.Tensor]) -> tuple[str | None, int]:
    """Kind and operations of a call; no kind when it is none of these."""
    packet = func.overloadpacket
    if packet in (_aten.mm, _aten.bmm):
        return MATMUL, 2 * made[0].numel() * args[0].shape[-1]
    if packet in (_aten.addmm, _aten.baddbmm):
        return MATMUL, 2 * made[0].numel() * args[1].shape[-1]
    if packet is _aten.convolution:
        return CONVOLUTION, 2 * made[0].numel() * math.prod(args[1].shape[1:])
    if "scaled_dot_product" in packet.__name__:
        return ATTENTION, attention_flops(args[0], args[1])
    return None, 0


def attention_flops(q: torch.Tensor, k: torch.Tensor) -> int:
    """Of `q` [B, heads, L, D] over keys `k` [B, heads, S, D]."""
    return 4 * q.numel() * k.shape[-2]


class FlashAttention(TorchFunctionMode):
    """On the meta device PyTorch's attention is the one that holds all logits; this one holds none, as kernels do."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            self.trace.flops[ATTENTION] += attention_flops(args[0], args[1])
            return torch.empty_like(args[0])
        return function(*args, **(kwargs or {}))
