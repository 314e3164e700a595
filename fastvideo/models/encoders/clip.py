"""CLIP vision encoder.

Sources: "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020), section 2.4; the
reference that results are compared with is `transformers`'s `modeling_clip.py`.
"""

from collections.abc import Sequence

import torch
from torch import nn

from fastvideo.attention.layer import LocalAttention
from fastvideo.configs.models.encoders.clip import CLIPVisionArchConfig
from fastvideo.layers.mlp import MLP
from fastvideo.models.encoders.base import ImageEncoder


class CLIPBlock(nn.Module):
    """Self-attention and perceptron, each on a normalised input."""

    def __init__(self, arch: CLIPVisionArchConfig) -> None:
        super().__init__()
        dim, eps = arch.hidden_size, arch.layer_norm_eps
        self.head_dim = arch.head_dim
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention = LocalAttention()
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, arch.intermediate_size, dim, act=arch.hidden_act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        x = x + self.out(self.attention(q, k, v).flatten(2))
        return x + self.mlp(self.norm2(x))


class CLIPVisionModel(ImageEncoder):
    """All layers but the last, whose states describe an image in more detail than what the last makes of them."""

    def __init__(self, arch: CLIPVisionArchConfig) -> None:
        super().__init__()
        self.arch = arch
        dim, patch = arch.hidden_size, arch.patch_size
        self.class_embedding = nn.Parameter(torch.randn(dim))
        self.patch_embedding = nn.Conv2d(arch.num_channels, dim, patch, stride=patch, bias=False)
        self.position_embedding = nn.Parameter(torch.randn(1 + (arch.image_size // patch) ** 2, dim))
        self.norm = nn.LayerNorm(dim, eps=arch.layer_norm_eps)
        self.blocks = nn.ModuleList(CLIPBlock(arch) for _ in range(arch.num_hidden_layers - 1))

    @property
    def state_shape(self) -> tuple[int, int]:
        return len(self.position_embedding), self.arch.hidden_size

    def forward(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """States [N, 1 + patches, d] of `images`, each [H, W, 3]: uint8, or in [0, 1]."""
        weight = self.patch_embedding.weight
        return self.hidden_states(torch.stack([self.processor(image) for image in images]).to(weight))

    def hidden_states(self, pixels: torch.Tensor) -> torch.Tensor:
        """States [N, 1 + patches, d] of processed `pixels` [N, 3, image_size, image_size]."""
        patches = self.patch_embedding(pixels).flatten(2).mT
        x = torch.cat((self.class_embedding.expand(len(patches), 1, -1), patches), dim=1) + self.position_embedding
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        return x
