"""Arch config of the Wan 2.1 and 2.2 video VAEs and their checkpoint names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastvideo.configs.models.base import ArchConfig, ParamNamesMapping, Rename, shape_of

# Per-channel statistics of the latents that the 16-channel Wan 2.1 VAE was published with.
WAN21_LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN21_LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

# Those of the 48-channel Wan 2.2 VAE.
WAN22_LATENTS_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
WAN22_LATENTS_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


def _residual(theirs: str, ours: str) -> tuple[Rename, ...]:
    return (
        Rename(f"{theirs}.residual.0.gamma", f"{ours}.norm1.gamma"),
        Rename(f"{theirs}.residual.2.*", f"{ours}.conv1.*"),
        Rename(f"{theirs}.residual.3.gamma", f"{ours}.norm2.gamma"),
        Rename(f"{theirs}.residual.6.*", f"{ours}.conv2.*"),
        Rename(f"{theirs}.shortcut.*", f"{ours}.conv_shortcut.*"),
    )


def _half(side: str) -> tuple[Rename, ...]:
    """Names of one half, `side` encoder or decoder, apart from its list of blocks."""
    return (
        Rename(f"{side}.conv1.*", f"{side}.conv_in.*"),
        *_residual(f"{side}.middle.0", f"{side}.mid_block.resnets.0"),
        Rename(f"{side}.middle.1.*", f"{side}.mid_block.attentions.0.*"),
        *_residual(f"{side}.middle.2", f"{side}.mid_block.resnets.1"),
        Rename(f"{side}.head.0.gamma", f"{side}.norm_out.gamma"),
        Rename(f"{side}.head.2.*", f"{side}.conv_out.*"),
    )


def _decoder_blocks(levels: int, num_res_blocks: int) -> tuple[Rename, ...]:
    """The official decoder counts its blocks in one list; ours has `num_res_blocks + 1` and a resampler a level."""
    rules: list[Rename] = []
    index = 0
    for level in range(levels):
        for block in range(num_res_blocks + 1):
            rules += _residual(f"decoder.upsamples.{index}", f"decoder.up_blocks.{level}.resnets.{block}")
            index += 1
        if level < levels - 1:
            rules.append(Rename(f"decoder.upsamples.{index}.*", f"decoder.up_blocks.{level}.upsamplers.0.*"))
            index += 1
    return tuple(rules)


@cache
def official_names(levels: int, num_res_blocks: int) -> ParamNamesMapping:
    """The authors' names of a VAE with `levels` resolutions of `num_res_blocks` blocks in the encoder."""
    return ParamNamesMapping(
        rules=(
            Rename("conv1.*", "quant_conv.*"),
            Rename("conv2.*", "post_quant_conv.*"),
            *_half("encoder"),
            *_residual("encoder.downsamples.*", "encoder.down_blocks.*"),
            Rename("encoder.downsamples.*", "encoder.down_blocks.*"),
            *_half("decoder"),
            *_decoder_blocks(levels, num_res_blocks),
        )
    )


@cache
def official_residual_names(num_res_blocks: int) -> ParamNamesMapping:
    """The authors' names of a VAE whose levels are residual, with `num_res_blocks` blocks each in the encoder."""
    rules: list[Rename] = []
    for side, theirs, ours, blocks in (
        ("encoder", "downsample", "down", num_res_blocks), ("decoder", "upsample", "up", num_res_blocks + 1),
    ):  # fmt: skip
        level = f"{side}.{theirs}s.*.{theirs}s"
        for block in range(blocks):
            rules += _residual(f"{level}.{block}", f"{side}.{ours}_blocks.*.resnets.{block}")
        rules.append(Rename(f"{level}.{blocks}.*", f"{side}.{ours}_blocks.*.{theirs}r.*"))
    top = (Rename("conv1.*", "quant_conv.*"), Rename("conv2.*", "post_quant_conv.*"))
    return ParamNamesMapping(rules=(*top, *_half("encoder"), *_half("decoder"), *rules))


@dataclass(frozen=True, kw_only=True)
class WanVAEArchConfig(ArchConfig):
    """Fields of an `AutoencoderKLWan` `config.json`, under their names there."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: float = 0.0
    latents_mean: Sequence[float] = WAN21_LATENTS_MEAN
    latents_std: Sequence[float] = WAN21_LATENTS_STD
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8

    def __post_init__(self) -> None:
        if self.patch_size is not None and (self.patch_size < 1 or self.out_channels % self.patch_size**2):
            raise ValueError(f"patch_size={self.patch_size}: its square must divide out_channels={self.out_channels}")
        if self.attn_scales or self.dropout:
            raise ValueError(f"attn_scales={self.attn_scales}, dropout={self.dropout}: must be empty and 0")
        if len(self.latents_mean) != self.z_dim or len(self.latents_std) != self.z_dim:
            raise ValueError(
                f"latents_mean has {len(self.latents_mean)} and latents_std {len(self.latents_std)} values: "
                f"both must have z_dim={self.z_dim}"
            )
        patch = self.patch_size or 1
        spatial, temporal = patch * 2 ** len(self.temperal_downsample), 2 ** sum(self.temperal_downsample)
        if (self.scale_factor_spatial, self.scale_factor_temporal) != (spatial, temporal):
            raise ValueError(
                f"scale_factor_spatial={self.scale_factor_spatial}, "
                f"scale_factor_temporal={self.scale_factor_temporal}: "
                f"temperal_downsample={self.temperal_downsample} and patch_size={self.patch_size} make them "
                f"{spatial} and {temporal}"
            )

    @property
    def latent_scale(self) -> tuple[int, int]:
        return self.scale_factor_temporal, self.scale_factor_spatial

    @property
    def official_param_names_mapping(self) -> ParamNamesMapping | None:
        if self.is_residual:
            return official_residual_names(self.num_res_blocks)
        return official_names(len(self.dim_mult), self.num_res_blocks)

    @classmethod
    def from_official(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> "WanVAEArchConfig":
        """The VAE of an official Wan folder, which comes without a config: its widths are read off its tensors.

        Raises:
            ValueError: a tensor that decides a width is missing or misshapen.
        """
        base_dim, in_channels = shape_of(shapes, "encoder.conv1.weight", 5)[:2]
        out_channels, decoder_dim = shape_of(shapes, "decoder.head.2.weight", 5)[:2]
        widths: dict[str, Any] = {
            "base_dim": base_dim,
            "decoder_base_dim": None if decoder_dim == base_dim else decoder_dim,
            "z_dim": shape_of(shapes, "conv2.weight", 5)[0],
            "in_channels": in_channels,
            "out_channels": out_channels,
        }
        if any(name.startswith("encoder.downsamples.0.downsamples.") for name in shapes):
            widths |= {
                "is_residual": True, "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": WAN22_LATENTS_MEAN,
                "latents_std": WAN22_LATENTS_STD,
            }  # fmt: skip
        return cls(**widths)
