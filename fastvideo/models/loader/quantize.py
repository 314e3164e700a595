"""Which weights of a model are quantized while they are loaded, and what that saves."""

from collections.abc import Callable

import torch
from torch import nn

from fastvideo.configs.models.base import ArchConfig
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.quantization import QUANTIZATIONS
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.layers.quantization import check_layer, quantizer, why_not
from fastvideo.models.loader.weights import dtype_of
from fastvideo.platforms import current_platform
from fastvideo.utils import require


def quantized_layers(model: nn.Module, arch: ArchConfig) -> dict[str, nn.Linear]:
    """The linear layers of `model` whose weights are quantized, by the name of the weight: all but those that `arch`
    keeps in fp32 or unquantized."""
    keep = (*arch.keep_fp32, *arch.keep_unquantized)
    layers = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: layer for name, layer in layers.items() if not any(part in name for part in keep)}


def quantize_weights(model: nn.Module, arch: ArchConfig, method: str) -> Callable[[str], None]:
    """A function that quantizes the weight of that name, if it is one that is quantized.

    Raises:
        ValueError: `torchao` is not installed.
    """
    quantize, layers = quantizer(method), quantized_layers(model, arch)

    def finish(name: str) -> None:
        if name in layers:
            quantize(layers[name])

    return finish


def check_quantized(
    name: str, model: nn.Module, arch: ArchConfig, args: FastVideoArgs, pipeline_config: PipelineConfig
) -> None:
    """Check that component `name`, whose `model` may be on the meta device, can be quantized if `args` ask for it.

    Raises:
        ValueError: the device, the precision or a layer's size forbids it, or the weights stay on disk, or `torchao`
            is not installed; it names the option.
    """
    method, option = args.quantization_of(name), args.quantization_option(name)
    path = args.weight_paths.get(name)
    if path is not None or method is not None:
        given, value = (option, method) if path is None else (f"{name}_path", path)
        require(args.home(name) == "device", given, value, f"component {name!r} stays on disk, in its files",
                "leave it out of disk_offload, or leave this None")  # fmt: skip
    if method is None:
        return
    reason = why_not(method, current_platform(args.device).device, pipeline_config.precision_of(name))
    require(reason is None, option, method, reason or "")
    for weight, layer in quantized_layers(model, arch).items():
        check_layer(method, option, weight, layer)
    quantizer(method, option)


def bytes_of(model: nn.Module, arch: ArchConfig, dtype: torch.dtype, method: str | None) -> int:
    """Of the weights of `model` in memory: `dtype`, but for what `arch` keeps in fp32 and what `method` quantizes."""
    quantized = quantized_layers(model, arch) if method is not None else {}
    total = 0
    for name, parameter in model.named_parameters():
        if method is not None and name in quantized:
            total += QUANTIZATIONS[method].bytes_of(*parameter.shape)
        else:
            total += parameter.numel() * dtype_of(name, dtype, arch.keep_fp32).itemsize
    return total
