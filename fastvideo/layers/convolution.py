"""Convolutions by the kernel that is fast."""

import torch
import torch.nn.functional as F


def conv3d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: tuple[int, int, int]
) -> torch.Tensor:
    """`F.conv3d` of `x` [B, C, T, H, W] with stride 1.

    On a CPU PyTorch takes oneDNN for fp32 only from a size on that leaves the width out (`use_mkldnn` in
    `aten/src/ATen/native/Convolution.cpp`), and for one small clip its own kernel, which takes ten times as long. Here
    oneDNN has all of them. Its sums do not depend on B, so a clip has the same bits alone and among others.
    Autocast, which would not reach this product, has PyTorch's.
    """
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if plain and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, bias, padding, (1, 1, 1), (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, padding=padding)
