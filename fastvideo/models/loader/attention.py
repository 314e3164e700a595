"""The attention backends of a model's layers, from the options, and compiling around them."""

import torch
from torch import nn

from fastvideo import envs
from fastvideo.attention.layer import DistributedAttention
from fastvideo.attention.selector import set_attention_backend
from fastvideo.configs.models.base import ArchConfig
from fastvideo.distributed.groups import Groups
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.dits.base import BaseDiT
from fastvideo.platforms import Platform
from fastvideo.utils import require, resolve


def choose_attention(
    model: nn.Module, arch: ArchConfig, dtype: torch.dtype, args: FastVideoArgs, platform: Platform, groups: Groups
) -> None:
    """Give the layers of `model`, which need not be loaded yet, their attention backends.

    Raises:
        ValueError: the one that was asked for cannot run, or not as its options have it.
    """
    if arch.head_dim is None:
        return
    shape, wanted = arch.transformer_shape, "auto"
    if isinstance(model, BaseDiT):
        wanted = args.resolved_attention_backend()
    set_attention_backend(
        model,
        wanted,
        device=platform.device,
        dtype=dtype,
        head_dim=arch.head_dim,
        ring=groups.ring.size > 1,
        options=args.attention_options(),
        heads=None if shape is None else shape.heads,
        # tensor parallelism slices the heads, and Ulysses slices its slices
        part=(groups.tp.rank * groups.ulysses.size + groups.ulysses.rank, groups.tp.size * groups.ulysses.size),
    )
    whole = isinstance(model, BaseDiT) and (args.torch_compile_kwargs or {}).get("fullgraph")
    for layer in model.modules():
        if isinstance(layer, DistributedAttention) and not layer.backend.traced:
            require(not whole, "torch_compile_kwargs", args.torch_compile_kwargs,
                    f"{layer.backend.name} is not compiled with its block", "leave fullgraph out")  # fmt: skip


def compile_blocks(model: nn.Module, args: FastVideoArgs) -> None:
    """Compile the blocks of a diffusion transformer, if that was asked for."""
    if not isinstance(model, BaseDiT) or not args.enable_torch_compile:
        return
    for layer in model.modules():
        if isinstance(layer, DistributedAttention) and not layer.backend.traced:
            layer.exchange = torch.compiler.disable(layer.exchange)
    # imported on use: the compiler takes seconds
    envs.keep_compiled_code(resolve("torch._inductor.runtime.cache_dir_utils:default_cache_dir")())
    model.compile_blocks(**(args.torch_compile_kwargs or {}))
