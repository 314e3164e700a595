"""Weights sharded over the ranks that would hold them all (FSDP, arXiv 2304.11277), gathered a block at a time."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from fastvideo.distributed.layout import part_of


def shard_weights(model: nn.Module, blocks: nn.ModuleList, mesh: DeviceMesh, *, offload: bool = False) -> None:
    """Shard the parameters of `model` along their first dimension over `mesh`.

    Each of `blocks` is gathered when it runs, and the next one's weights are on their way meanwhile; the rest of the
    model is gathered when the model runs.

    Args:
        model: on the meta device, its parameters in the dtypes that they will have.
        blocks: modules of `model` that run one after another.
        mesh: one dimension, of the ranks that hold equal weights.
        offload: keep the shards in host memory, and bring each to the device when it is needed.
    """
    # takes most of a second to import, which a start on one device can do without
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

    policy = CPUOffloadPolicy() if offload else OffloadPolicy()
    for block in blocks:
        fully_shard(block, mesh=mesh, offload_policy=policy)
    fully_shard(model, mesh=mesh, offload_policy=policy)
    ordered = [block for block in blocks if isinstance(block, FSDPModule)]
    for block, following in zip(ordered, ordered[1:], strict=False):
        block.set_modules_to_forward_prefetch([following])


def reshard(model: nn.Module) -> None:
    """Leave of the parameters of `model`, which `shard_weights` sharded, this rank's shards alone, to be written to.

    What runs last in a forward pass stays gathered after it, as a copy that would hide what is written.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_rows(parameter: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """The memory of `parameter` on this rank, and which of its rows that is: start and stop."""
    rows = parameter.shape[0] if parameter.ndim else 1
    if type(parameter) in (nn.Parameter, torch.Tensor):
        return parameter, 0, rows
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    return parameter.to_local(), *part_of(rows, mesh.get_local_rank(), mesh.size())
