"""Which weights of a model stay in the blocks of a GGUF file, and which are dequantized when they are loaded."""

from collections.abc import Mapping

import torch
from torch import nn

from fastvideo.configs.models.base import Target
from fastvideo.layers.packed import PACKED, PackedEmbedding, PackedLinear, PackedWeight, dequantize
from fastvideo.models.loader.checkpoint import TensorInfo


def hold_packed(
    model: nn.Module, header: Mapping[str, TensorInfo], targets: Mapping[str, Target], dtype: torch.dtype
) -> dict[str, PackedWeight]:
    """Replace the linear layers and embeddings of `model` whose weights come in blocks by ones that keep them so.

    Args:
        model: on the meta device.
        header: the tensors of the checkpoint.
        targets: where they go.
        dtype: of what an embedding gives.

    Returns:
        The weights to fill, by the names of the parameters that they are now.
    """
    held: dict[str, PackedWeight] = {}
    for source, target in targets.items():
        kind = header[source].packed
        owner_name, _, leaf = target.name.rpartition(".")
        if kind is None or leaf != "weight" or target.name in held:
            continue
        layer = model.get_submodule(owner_name)
        packed: nn.Module
        if isinstance(layer, nn.Linear):
            weight = PackedWeight(layer.weight.shape, target.parts)
            packed = PackedLinear(weight, layer.bias)
        elif isinstance(layer, nn.Embedding) and layer.embedding_dim % PACKED[kind].numbers == 0:
            weight = PackedWeight(layer.weight.shape, target.parts)
            packed = PackedEmbedding(weight, dtype)
        else:
            continue
        parent, _, attribute = owner_name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, packed)
        held[target.name] = weight
    return held


def put(weight: PackedWeight, part: int, info: TensorInfo, tensor: torch.Tensor, device: torch.device) -> None:
    """Copy `tensor` to `device` as piece `part` of `weight`."""
    weight.put(part, info.packed, tensor.to(device, copy=True))


def unpacked(tensor: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    """The numbers of `tensor`, which may come in blocks."""
    return tensor if info.packed is None else dequantize(info.packed, tensor, torch.float32).view(info.shape)
