"""What the model is shown beside the prompt: images and videos as its encoders and its VAE take them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.encoders.base import ImageEncoder
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.pipelines.stages.base import PipelineStage
from fastvideo.platforms import current_platform

LANCZOS = Image.Resampling.LANCZOS
Shown = Callable[[ForwardBatch], Sequence[torch.Tensor]]
"""The images [H, W, 3] that an encoder is shown."""
Fit = Callable[[torch.Tensor, int, int], torch.Tensor]
"""An image [H, W, 3], uint8 or in [0, 1], as [3, height, width] in [-1, 1]."""
MakeCondition = Callable[[ForwardBatch, torch.device], torch.Tensor | None]
"""Latents [1, C, t, h, w] fp32 of the media, on a device; None without media."""


def scaled(image: torch.Tensor, height: int, width: int, resample: Image.Resampling = LANCZOS) -> torch.Tensor:
    """`image` [H, W, 3], uint8 or in [0, 1], as [height, width, 3] of the same dtype, by a filter of Pillow's; on each
    colour alone where pixels are floats."""
    if tuple(image.shape[:2]) == (height, width):
        return image
    size = (width, height)
    if image.dtype == torch.uint8:
        return torch.from_numpy(np.array(Image.fromarray(image.numpy()).resize(size, resample)))
    planes = (Image.fromarray(plane.contiguous().numpy()).resize(size, resample) for plane in image.unbind(-1))
    return torch.stack([torch.from_numpy(np.array(plane)) for plane in planes], dim=-1).clamp(0, 1)


def signed(pixels: torch.Tensor) -> torch.Tensor:
    """`pixels` [..., H, W, 3], uint8 or in [0, 1], as [3, ..., H, W] fp32 in [-1, 1]."""
    levels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return (2 * levels - 1).movedim(-1, 0)


def fit_image(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`image` [H, W, 3], uint8 or in [0, 1], scaled to `height` x `width`: [3, height, width] fp32 in [-1, 1].

    Pillow's Lanczos filter, as in the reference's `VaeImageProcessor`.
    """
    return signed(scaled(image, height, width))


def fit_video(video: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The frames of `video` [T, H, W, 3], each as by `fit_image`: [3, T, height, width]."""
    return torch.stack([fit_image(frame, height, width) for frame in video], dim=1)


class ImageEncodingStage(PipelineStage):
    """What an image encoder sees in the images, those of several images behind each other; zeros where there are none
    of a model that may be shown some."""

    name = "image_encoding"
    writes = ("image_embeds",)

    def __init__(self, encoder: ImageEncoder, shown: Shown) -> None:
        self.encoder = encoder
        self.shown = shown

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        for images in batch.control.steps(self.name, [self.shown(batch)], total=1):
            if images:
                batch.image_embeds = self.use(self.encoder)(images).flatten(0, 1).unsqueeze(0)
            else:
                device = current_platform(args.device).device
                batch.image_embeds = torch.zeros(1, *self.encoder.state_shape, device=device)
        return batch


class ConditionStage(PipelineStage):
    """The latents of the media, by the family's function; nothing where there are no media, unless it wants to know."""

    name = "media_encoding"
    writes = ("condition",)

    def __init__(self, make: MakeCondition, always: bool = False, uses: tuple[str, ...] = ()) -> None:
        """`always` calls `make` without media too; `uses` are the fields of the batch that it reads."""
        self.make = make
        self.always = always
        self.reads = uses

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        if not (self.always or batch.media.names):
            batch.condition = None
            return batch
        device = current_platform(args.device).device
        for _ in batch.control.steps(self.name, [None], total=1):
            batch.condition = self.make(batch, device)
        return batch


class SteeringStage(PipelineStage):
    """The latents of a clip that steers the model beside its condition, by the family's function."""

    name = "steering"
    writes = ("steering",)

    def __init__(self, make: MakeCondition) -> None:
        self.make = make

    def forward(self, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        device = current_platform(args.device).device
        for _ in batch.control.steps(self.name, [None], total=1):
            batch.steering = self.make(batch, device)
        return batch
