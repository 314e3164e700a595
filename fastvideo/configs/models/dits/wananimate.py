"""Arch config of the Wan transformer that animates a person, and its checkpoint names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

from fastvideo.configs.models.base import ParamNamesMapping, Rename, shape_of, stacked
from fastvideo.configs.models.dits.wanvideo import DIFFUSERS_NAMES, OFFICIAL_NAMES, WanVideoArchConfig

MOTION_CHANNELS: Mapping[str, int] = {
    "4": 512, "8": 512, "16": 512, "32": 512, "64": 256, "128": 128, "256": 64, "512": 32, "1024": 16,
}  # fmt: skip
"""Of the motion encoder, where images are so many pixels a side; where its config does not say."""


@cache
def diffusers_names(layers: int, every: int) -> ParamNamesMapping:
    """Names in a Diffusers repo of a transformer that looks at the face after each of `layers`, from the first, whose
    number is a multiple of `every`."""
    rules = [
        Rename("motion_encoder.*.act_fn.bias", "motion_encoder.*.bias"),
        Rename("motion_encoder.res_blocks.*.*.act_fn.bias", "motion_encoder.res_blocks.*.*.bias"),
        Rename("motion_encoder.motion_synthesis_weight", "motion_encoder.directions"),
    ]
    for number, layer in enumerate(range(0, layers, every)):
        theirs, ours = f"face_adapter.{number}", f"blocks.{layer}.face"
        rules += [
            Rename(f"{theirs}.to_q.*", f"{ours}.q.*"),
            *stacked((f"{theirs}.to_k.*", f"{theirs}.to_v.*"), f"{ours}.kv.*"),
            Rename(f"{theirs}.to_out.*", f"{ours}.out.*"),
            Rename(f"{theirs}.norm_*.weight", f"{ours}.norm_*.weight"),
        ]
    return replace(DIFFUSERS_NAMES, rules=(*rules, *DIFFUSERS_NAMES.rules))


@cache
def official_names(layers: int, every: int, blocks: int) -> ParamNamesMapping:
    """Names in the authors' own files; `blocks` are the residual blocks of the motion encoder. The blur is a constant.

    Source: `scripts/convert_wan_to_diffusers.py` of `diffusers`, and `wan/modules/animate` of the authors.
    """
    net, motion = "motion_encoder.enc.net_app.convs", "motion_encoder"
    rules = [
        Rename(f"{net}.0.0.weight", f"{motion}.conv_in.weight"),
        Rename(f"{net}.0.1.bias", f"{motion}.conv_in.bias"),
        Rename(f"{net}.{blocks + 1}.weight", f"{motion}.conv_out.weight"),
        Rename(f"{motion}.enc.fc.*", f"{motion}.motion_network.*"),
        Rename(f"{motion}.dec.direction.weight", f"{motion}.directions"),
    ]
    for number in range(blocks):
        theirs, ours = f"{net}.{number + 1}", f"{motion}.res_blocks.{number}"
        rules += [
            Rename(f"{theirs}.conv1.0.weight", f"{ours}.conv1.weight"),
            Rename(f"{theirs}.conv1.1.bias", f"{ours}.conv1.bias"),
            Rename(f"{theirs}.conv2.1.weight", f"{ours}.conv2.weight"),
            Rename(f"{theirs}.conv2.2.bias", f"{ours}.conv2.bias"),
            Rename(f"{theirs}.skip.1.weight", f"{ours}.conv_skip.weight"),
        ]
    rules += [
        Rename(f"face_encoder.{name}.conv.*", f"face_encoder.{name}.*") for name in ("conv1_local", "conv2", "conv3")
    ]
    for number, layer in enumerate(range(0, layers, every)):
        theirs, ours = f"face_adapter.fuser_blocks.{number}", f"blocks.{layer}.face"
        rules += [
            Rename(f"{theirs}.linear1_q.*", f"{ours}.q.*"),
            Rename(f"{theirs}.linear1_kv.*", f"{ours}.kv.*"),
            Rename(f"{theirs}.linear2.*", f"{ours}.out.*"),
            Rename(f"{theirs}.q_norm.weight", f"{ours}.norm_q.weight"),
            Rename(f"{theirs}.k_norm.weight", f"{ours}.norm_k.weight"),
        ]
    kernels = (f"{net}.*.conv2.0.kernel", f"{net}.*.skip.0.kernel")
    return replace(OFFICIAL_NAMES, rules=(*rules, *OFFICIAL_NAMES.rules), drop=(*OFFICIAL_NAMES.drop, *kernels))


@dataclass(frozen=True, kw_only=True)
class WanAnimateArchConfig(WanVideoArchConfig):
    """Fields of a `WanAnimateTransformer3DModel` `config.json`, under their names there."""

    keep_fp32: ClassVar[tuple[str, ...]] = (*WanVideoArchConfig.keep_fp32, "motion_encoder.directions")
    keep_unquantized: ClassVar[tuple[str, ...]] = (*WanVideoArchConfig.keep_unquantized, "face_encoder")

    in_channels: int = 36
    image_dim: int | None = 1280
    added_kv_proj_dim: int | None = 5120
    latent_channels: int = 16
    motion_encoder_channel_sizes: Mapping[str, int] | None = None
    motion_encoder_size: int = 512
    motion_style_dim: int = 512
    motion_dim: int = 20
    motion_encoder_dim: int = 512
    face_encoder_hidden_dim: int = 1024
    face_encoder_num_heads: int = 4
    inject_face_latents_blocks: int = 5
    motion_encoder_batch_size: int = 8

    @property
    def face_side(self) -> int | None:
        return self.motion_encoder_size

    @property
    def param_names_mapping(self) -> ParamNamesMapping:
        return diffusers_names(self.num_layers, self.inject_face_latents_blocks)

    @property
    def official_param_names_mapping(self) -> ParamNamesMapping | None:
        return official_names(self.num_layers, self.inject_face_latents_blocks, len(self.motion_channels) - 1)

    @property
    def motion_channels(self) -> tuple[int, ...]:
        """Channels of the motion encoder, from the size of the face down to 4 pixels a side."""
        sizes = self.motion_encoder_channel_sizes or MOTION_CHANNELS
        return tuple(sizes[str(2**power)] for power in range(int(math.log2(self.motion_encoder_size)), 1, -1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_dim is None:
            raise ValueError("image_dim=None: a model that animates is shown an image; download the repo again")
        if self.in_channels != 2 * self.latent_channels + 4:
            raise ValueError(
                f"in_channels={self.in_channels}: must be 2 * latent_channels + 4, {2 * self.latent_channels + 4}"
            )
        every = self.inject_face_latents_blocks
        if every < 1 or self.num_layers % every:
            raise ValueError(f"inject_face_latents_blocks={every}: must divide num_layers={self.num_layers}")
        if self.patch_size[0] != 1:
            raise ValueError(f"patch_size={list(self.patch_size)}: must be of one frame, as each has a face of its own")
        size, sizes = self.motion_encoder_size, self.motion_encoder_channel_sizes or MOTION_CHANNELS
        power = max(size, 1).bit_length() - 1
        wanted = [str(2**step) for step in range(2, power + 1)]
        if size != 2**power or size < 8 or not all(name in sizes for name in wanted):
            raise ValueError(
                f"motion_encoder_size={size}: must be a power of 2, at least 8, with motion_encoder_channel_sizes for "
                "each from 4 on"
            )

    @classmethod
    def from_official(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> "WanAnimateArchConfig":
        """The config that an official `config.json` (`_class_name` WanAnimateModel) describes; what that does not say,
        the shapes do.

        Raises:
            ValueError: as of the model that animates nobody, or its image branch is off.
        """
        if raw.get("use_img_emb", True) is not True:
            raise ValueError(f"use_img_emb={raw['use_img_emb']!r}: a model that animates is shown an image")
        net = "motion_encoder.enc.net_app.convs"
        blocks = [name for name in shapes if name.startswith(f"{net}.") and name.endswith(".conv1.0.weight")]
        channels = [shape_of(shapes, f"{net}.0.0.weight", 4)[0]]
        channels += [shape_of(shapes, f"{net}.{number + 1}.conv2.1.weight", 4)[0] for number in range(len(blocks))]
        size, hidden = 4 * 2 ** len(blocks), shape_of(shapes, "face_encoder.conv2.conv.weight", 3)[0]
        looks = [name for name in shapes if name.startswith("face_adapter.") and name.endswith(".linear1_q.weight")]
        motion, dim = shape_of(shapes, "motion_encoder.dec.direction.weight", 2)
        found = {
            "motion_encoder_size": size, "motion_encoder_dim": motion, "motion_dim": dim,
            "motion_style_dim": shape_of(shapes, "motion_encoder.enc.fc.0.weight", 2)[0],
            "motion_encoder_channel_sizes": {str(size >> step): width for step, width in enumerate(channels)},
            "face_encoder_hidden_dim": hidden,
            "face_encoder_num_heads": shape_of(shapes, "face_encoder.conv1_local.conv.weight", 3)[0] // hidden,
            "latent_channels": shape_of(shapes, "pose_patch_embedding.weight", 5)[1],
            "inject_face_latents_blocks": raw.get("num_layers", 0) // max(1, len(looks)),
        }  # fmt: skip
        others = ("use_img_emb", "use_context_parallel")
        arch = super().from_official({key: value for key, value in raw.items() if key not in others} | found, shapes)
        assert isinstance(arch, WanAnimateArchConfig)
        return arch
