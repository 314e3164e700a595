"""Linear layers with quantized weights, by `torchao` (the extra `quant`), which is imported when one is made.

INT8 and FP8 have a scale for each row (arXiv 2208.07339, 2209.05433); NF4 is that of QLoRA (arXiv 2305.14314).
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fastvideo.configs.quantization import QUANTIZATIONS
from fastvideo.layers.int8 import to_int8
from fastvideo.utils import require, require_known

INSTALL = "pip install 'fastvideo[quant]'"
CHUNK = 1 << 18
"""Numbers of a weight that are quantized at a time, about."""
NF4_BLOCK = 64
"""Numbers that share a scale."""
NF4_SCALES = 256
"""Scales that share a scale of theirs, where there are as many."""

Quantizer = Callable[[nn.Linear], None]
"""Replaces the weight of a layer that has one, on the device that it will run on."""


def why_not(method: str, device: torch.device, precision: str) -> str | None:
    """Why layers in `precision` cannot have weights quantized by `method` on `device`, and what to do; None if they
    can."""
    what = QUANTIZATIONS[method]
    fits = [name for name, other in QUANTIZATIONS.items() if device.type in other.devices]
    if device.type not in what.devices:
        instead = f"use {' or '.join(fits)}" if fits else "leave it None"
        return f"does not run on {device.type}: {what.why_not_elsewhere}; {instead}"
    if what.capability is not None and torch.cuda.get_device_capability(device) < what.capability:
        return f"does not run on {torch.cuda.get_device_name(device)}: {what.why_not_elsewhere}; use fp8 or int8"
    if precision not in what.precisions:
        reason = "its products can overflow" if precision == "fp16" else "its products are in bf16"
        return f"does not go with {precision}: {reason}; use precision {' or '.join(what.precisions)}"
    return None


def check_layer(method: str, option: str, name: str, layer: nn.Linear) -> None:
    """Check that `method` can quantize `layer`, which may be on the meta device.

    Raises:
        ValueError: its sizes do not divide; it names `option` and the layer's `name`.
    """
    rows, columns = layer.weight.shape
    multiple = QUANTIZATIONS[method].multiple
    require(rows % multiple == columns % multiple == 0, option, method,
            f"layer {name!r} is {rows}x{columns}, and both must be multiples of {multiple}", "use int8")  # fmt: skip
    require(method != "nf4" or rows * columns % NF4_BLOCK == 0, option, method,
            f"layer {name!r} is {rows}x{columns}, which is no multiple of {NF4_BLOCK} weights", "use int8")  # fmt: skip


def quantizer(method: str, option: str = "quantization") -> Quantizer:
    """What quantizes a layer by `method`, a name in `QUANTIZATIONS`.

    Raises:
        ValueError: no such method, or `torchao` is not installed or too old; it names `option`.
    """
    require_known((method,), QUANTIZATIONS, option)
    ao = _torchao(option, method)
    if method == "nf4":
        return _to_nf4
    # else torchao lets every product of fp32, quantized or not, be one of TF32
    plain = {"set_inductor_config": False}
    try:
        config = {
            "int8": lambda: ao.Int8WeightOnlyConfig(**plain),
            "int8_dynamic": lambda: ao.Int8DynamicActivationInt8WeightConfig(**plain),
            "fp8": lambda: ao.Float8WeightOnlyConfig(**plain),
            "fp8_dynamic": lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), **plain),
        }[method]()
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{option}={method!r}: torchao is another version ({error}); run {INSTALL}") from None

    def quantize(layer: nn.Linear) -> None:
        if method == "int8_dynamic" and layer.weight.device.type == "cpu":
            # torchao rounds inputs and scales products in passes over memory, which take what INT8 saves
            to_int8(layer, _rows_at_once(layer.weight))
        else:
            _by_rows(layer, lambda part: ao.quantize_(part, config))

    return quantize


def held_bytes(tensor: torch.Tensor) -> int:
    """Of `tensor` in memory; of a quantized one, of its numbers and scales."""
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(held_bytes(getattr(tensor, name)) for name in names)


def _by_rows(layer: nn.Linear, quantize: Callable[[nn.Linear], object]) -> None:
    """Quantize the weight of `layer` some rows at a time, whose numbers depend on no other row: `torchao` makes copies
    in up to 8 bytes a number on the way."""
    weight = layer.weight.detach()
    parts: list[Any] = []
    for part in weight.split(_rows_at_once(weight)):
        with torch.device("meta"):
            one = nn.Linear(part.shape[1], part.shape[0], bias=False)
        one.weight = nn.Parameter(part, requires_grad=False)
        quantize(one)
        parts.append(one.weight)
    names, context = parts[0].__tensor_flatten__()
    inner = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    whole = type(parts[0]).__tensor_unflatten__(inner, context, weight.shape, weight.stride())
    layer.weight = nn.Parameter(whole, requires_grad=False)


def _rows_at_once(weight: torch.Tensor) -> int:
    return max(1, CHUNK // weight.shape[1] // 16) * 16


def _to_nf4(layer: nn.Linear) -> None:
    """As `to_nf4` of `torchao`, which compares each weight with each code, so that a model takes it minutes."""
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import NF4Tensor, SubclassTensorArgs, to_nf4

    weight = layer.weight.detach()
    flat = weight.flatten()
    blocks = flat.numel() // NF4_BLOCK
    scales = math.gcd(NF4_SCALES, blocks)
    # the table of codes, in the weight's dtype
    nf4 = to_nf4(flat.new_ones(NF4_BLOCK), NF4_BLOCK, 1).nf4
    scalers, factor, mean = NF4Tensor.double_quantize_scalers(flat, NF4_BLOCK, scales)
    codes = torch.cat([_nf4_codes(part.view(-1, NF4_BLOCK), nf4) for part in flat.split(CHUNK)])
    meta = SubclassTensorArgs(weight.shape, weight.stride(), 0, weight.dtype, weight.device, False)
    quantized = NF4Tensor(meta, NF4_BLOCK, blocks, scales, scalers, factor, mean, codes, nf4=nf4)
    layer.weight = nn.Parameter(quantized, requires_grad=False)


def _nf4_codes(blocks: torch.Tensor, nf4: torch.Tensor) -> torch.Tensor:
    """The nearest of the 16 codes `nf4` to each number of `blocks` [n, 64] over its block's largest, two a byte."""
    wide, table = blocks.float(), nf4.float()
    # a block of zeros has no largest, and any scale will do
    scaled = wide / wide.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    codes = torch.bucketize(scaled, (table[1:] + table[:-1]) / 2).to(torch.uint8).flatten()
    return codes[::2] << 4 | codes[1::2]


def _torchao(option: str, method: str) -> Any:
    try:
        with _quiet("torchao", "torch.utils._pytree"):
            return import_module("torchao.quantization")
    except ImportError as error:
        try:
            there = f"torchao {metadata.version('torchao')} cannot be imported ({error})"
        except metadata.PackageNotFoundError:
            there = "needs torchao, which is not installed"
        raise ValueError(f"{option}={method!r}: {there}; run {INSTALL}") from None


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without warnings of these loggers: `torchao` names each kernel of another platform, and what torch deprecates."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
