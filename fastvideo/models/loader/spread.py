"""Spreads a built model over ranks: slices of its layers, shards of its weights, parts of its sequence."""

import torch
from torch import nn

from fastvideo.attention.layer import DistributedAttention
from fastvideo.configs.models.base import ArchConfig
from fastvideo.distributed.groups import Groups
from fastvideo.distributed.placement import shard_weights
from fastvideo.distributed.sequence import SequenceShard
from fastvideo.distributed.vae_split import FrameSplit, Grid, split_grid
from fastvideo.layers.tensor_parallel import shard_layers
from fastvideo.models.dits.base import BaseDiT
from fastvideo.models.encoders.base import TextEncoder
from fastvideo.models.loader.weights import give_dtypes
from fastvideo.models.vaes.base import BaseVAE


def spread_weights(
    model: nn.Module, arch: ArchConfig, groups: Groups, *, dtype: torch.dtype, device: torch.device, offload: bool
) -> None:
    """Prepare `model`, on the meta device, to be loaded with this rank's part of the weights alone.

    Transformers and text encoders are spread; a VAE is small and whole on every rank.

    Args:
        model: as it was built.
        arch: what it was built from.
        groups: this rank's.
        dtype: of the weights, apart from those that `arch` keeps in fp32.
        device: that the model runs on.
        offload: keep the shards of the weights in host memory.

    Raises:
        ValueError: a width of the model does not divide by the tensor-parallel degree.
    """
    if not isinstance(model, BaseDiT | TextEncoder):
        return
    if groups.tp.size > 1:
        shard_layers(model, groups.tp)
    if groups.layout.fsdp:
        assert groups.replicas is not None
        give_dtypes(model, dtype, arch.keep_fp32)
        shard_weights(model, model.blocks, groups.replicas, offload=offload)
        model.to_empty(device="cpu" if offload else device)


def spread_decoder(model: nn.Module, groups: Groups) -> None:
    """Let the ranks share the decoding of a VAE, or where the layout has it so, let the first do it alone."""
    if groups.layout.world > 1 and isinstance(model, BaseVAE):
        alone = Grid(1, 1)
        choose = split_grid if groups.layout.vae else lambda *sizes: alone
        model.split = FrameSplit(groups.world, choose)


def spread_sequence(model: nn.Module, groups: Groups) -> None:
    """Let each rank of `groups.sp` run a transformer's blocks on its part of the tokens, and let all that run blocks
    together agree on which."""
    if not isinstance(model, BaseDiT):
        return
    if groups.sp.size * groups.tp.size > 1:
        model.agree = lambda value: groups.sp.broadcast(groups.tp.broadcast(value))
    if groups.sp.size == 1:
        return
    shard = SequenceShard(groups)
    model.sequence = shard
    for module in model.modules():
        if isinstance(module, DistributedAttention):
            module.exchange = shard.attend
