"""How an image encoder wants its images: scaled, cut to the middle, normalised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fastvideo.utils import require, require_known

IGNORED = ("feature_extractor_type", "image_processor_type", "processor_class", "data_format", "input_data_format",
           "device", "return_tensors", "disable_grouping", "pad_size", "do_pad", "image_seq_length")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """What a `preprocessor_config.json` of class `CLIPImageProcessor` says. The defaults are that class's own."""

    size: int = 224
    """The shorter side is scaled to it, with Pillow's bicubic filter."""
    crop: tuple[int, int] = (224, 224)
    """Height and width that are cut out of the middle."""
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    whole: bool = False
    """Whether, in place of that, all of the image is scaled to `crop`, whatever its proportions, and interpolated
    bicubically between neighbours; no config says so, but some models were trained so."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "ImageProcessor":
        """The processor that `raw`, the parsed file, describes.

        Raises:
            ValueError: a key that is not known, or a value that this class does not do.
        """
        values = {key: value for key, value in raw.items() if not key.startswith("_") and key not in IGNORED}
        does = {f"do_{what}": True for what in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
        fixed: dict[str, Any] = {**does, "resample": 3, "rescale_factor": 1 / 255}
        require_known(values, (*fixed, "size", "crop_size", "image_mean", "image_std"), "key of an image processor")
        for key, must in fixed.items():
            value = values.get(key, must)
            require(value == must or abs(value - must) < 1e-9, key, value, f"must be {must}")
        edge, area = values.get("size", 224), values.get("crop_size", 224)
        size: Any = edge.get("shortest_edge") if isinstance(edge, dict) else edge
        crop: Any = (area.get("height"), area.get("width")) if isinstance(area, dict) else (area, area)
        whole = all(isinstance(one, int) and one > 0 for one in (size, *crop))
        require(whole and size >= max(crop), "size", raw.get("size"), f"its shortest_edge must be {crop} or more")
        mean, std = (tuple(values.get(f"image_{name}", getattr(cls, name))) for name in ("mean", "std"))
        return cls(size=size, crop=crop, mean=mean, std=std)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """`image` [H, W, 3], uint8 or in [0, 1], as the encoder wants it: fp32 [3, *crop]."""
        if self.whole:
            return self._normalised(self._squeezed(image))
        pixels = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
        height, width = pixels.shape[:2]
        short, long = sorted((height, width))
        other = int(self.size * long / short)
        target = (other, self.size) if width <= height else (self.size, other)
        scaled = Image.fromarray(pixels.numpy()).resize((target[1], target[0]), Image.Resampling.BICUBIC)
        top, left = (target[0] - self.crop[0]) // 2, (target[1] - self.crop[1]) // 2
        cut = np.asarray(scaled)[top : top + self.crop[0], left : left + self.crop[1]]
        return self._normalised(torch.from_numpy(cut.copy()).float() / 255)

    def _squeezed(self, image: torch.Tensor) -> torch.Tensor:
        levels = image.float() / 255 if image.dtype == torch.uint8 else image
        planes = levels.movedim(-1, 0).unsqueeze(0)
        return F.interpolate(planes, self.crop, mode="bicubic", align_corners=False)[0].movedim(0, -1)

    def _normalised(self, levels: torch.Tensor) -> torch.Tensor:
        return ((levels - torch.tensor(self.mean)) / torch.tensor(self.std)).movedim(-1, 0)
