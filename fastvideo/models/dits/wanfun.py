"""Wan transformers of VideoX-Fun, some of which see a reference image as a frame before the video.

Source: `videox_fun/models/wan_transformer3d.py` of aigc-apps/VideoX-Fun, which publishes the models.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.configs.models.dits.wanfun import WanFunArchConfig
from fastvideo.models.dits.wanvideo import WanContext, WanTransformer3DModel


class WanFunTransformer3DModel(WanTransformer3DModel):
    """The Wan transformer, with a patch embedding of its own for the latents of a reference image in some of them."""

    arch: WanFunArchConfig

    def __init__(self, arch: WanFunArchConfig) -> None:
        super().__init__(arch)
        self.ref_conv = None
        if arch.add_ref_conv:
            patch = arch.patch_size[1:]
            self.ref_conv = nn.Conv2d(arch.in_dim_ref_conv, arch.hidden_size, patch, stride=patch)

    def embed(  # type: ignore[override]  # names its own conditions
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        *,
        text: torch.Tensor,
        text_padding: int = 0,
        image: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, WanContext]:
        """As of the other transformer.

        Args:
            latents, timestep, text, text_padding, image: as there.
            reference: [B, in_dim_ref_conv, H, W], latents of the reference image, or zeros; of a model that has a place
                for it, and of no other.

        Raises:
            ValueError: as there, or a reference where there is no place for it, or none where there is.
        """
        if (reference is None) != (self.ref_conv is None):
            raise ValueError("reference: must be given to a model with add_ref_conv, and to no other")
        if reference is None or self.ref_conv is None:
            return super().embed(latents, timestep, text=text, text_padding=text_padding, image=image)
        # the reference is frame 0, and the video begins with frame 1
        if timestep.ndim > 1:
            timestep = torch.cat((timestep[:, -1:], timestep), dim=1)
        longer = F.pad(latents, (0, 0, 0, 0, 1, 0))
        tokens, context = super().embed(longer, timestep, text=text, text_padding=text_padding, image=image)
        first = self.ref_conv(reference.to(self.ref_conv.weight.dtype)).flatten(2).mT
        return torch.cat((first, tokens[:, first.shape[1] :]), dim=1), context

    def unpatchify(self, patches: torch.Tensor, context: WanContext) -> torch.Tensor:
        """The velocity [B, C, T, H, W] of the video alone."""
        velocity = super().unpatchify(patches, context)
        return velocity if self.ref_conv is None else velocity[:, :, 1:]
