"""Products in INT8 on a CPU: weights and inputs are rounded with a scale for each row (arXiv 2208.07339, section 2.2).

The product itself is oneDNN's, which has twice as many multiplications an instruction as bf16 where the processor has
AVX512-VNNI. What comes before and after it goes over some rows of inputs at a time, which stay in the cache meanwhile.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

ROWS = 512
"""Of the inputs that are multiplied at a time: the products of a wide layer, 4 bytes each, fit into the cache."""
HALF = 127.5
"""Half of what 256 levels span, as `torchao` has it: the largest number of a row is half a level beyond the last."""


class Int8Weight(torch.Tensor):
    """A matrix [N, K] of a linear layer in INT8, with a scale for each row; `F.linear` multiplies in INT8."""

    numbers: torch.Tensor
    """[N, K]."""
    scale: torch.Tensor
    """[N] fp32."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> "Int8Weight":
        """`dtype` is that of the layer's outputs."""
        made = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=dtype, device=numbers.device)
        made.numbers, made.scale = numbers, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], torch.dtype]:
        return ["numbers", "scale"], self.dtype

    @staticmethod
    def __tensor_unflatten__(
        inner: Mapping[str, torch.Tensor], dtype: torch.dtype, size: torch.Size, stride: Sequence[int]
    ) -> "Int8Weight":
        return Int8Weight(inner["numbers"], inner["scale"], dtype)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Int8Weight({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear:
            return int8_linear(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].numbers, args[0].scale, args[0].dtype)
        raise NotImplementedError(f"{func} of a weight in INT8")


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of `x` [M, K] in INT8, and their scales [M, 1] in fp32; a row of zeros stays one."""
    tiny = torch.finfo(torch.float32).tiny
    scale = x.abs().amax(dim=1, keepdim=True).float().div_(HALF).clamp_(min=tiny)
    return (x / scale).round_().clamp_(-128, 127).to(torch.int8), scale


def int8_linear(x: torch.Tensor, weight: Int8Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The linear layer of `x` [..., K] in fp32 or bf16, in INT8: sums are exact, scales and bias are in fp32."""
    rows, transposed = x.reshape(-1, x.shape[-1]), weight.numbers.t()
    out = x.new_empty(rows.shape[0], weight.shape[0])
    for part, place in zip(rows.split(ROWS), out.split(ROWS), strict=True):
        numbers, scale = rounded(part)
        product = torch._int_mm(numbers, transposed).float().mul_(weight.scale).mul_(scale)
        place.copy_(product if bias is None else product.add_(bias))
    return out.unflatten(0, x.shape[:-1])


def to_int8(layer: nn.Linear, rows: int) -> None:
    """Round the weight of `layer`, so many rows at a time."""
    weight = layer.weight.detach()
    parts = [rounded(part.float()) for part in weight.split(rows)]
    numbers, scale = (torch.cat(values) for values in zip(*parts, strict=True))
    layer.weight = nn.Parameter(Int8Weight(numbers, scale.flatten(), weight.dtype), requires_grad=False)
