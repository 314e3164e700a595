"""Arch config of the Wan transformers that VideoX-Fun publishes, whose weights have the names of the Wan authors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig

ALIASES = ("in_channels", "hidden_size", "cross_attn_type")
"""Keys of their `config.json` that repeat others, or that the pipeline implies."""


@dataclass(frozen=True, kw_only=True)
class WanFunArchConfig(WanVideoArchConfig):
    """Those of the Wan transformer, and what these have beside them; names as in VideoX-Fun's `config.json`."""

    add_ref_conv: bool = False
    """Whether a reference image is a frame of its own before the video."""
    in_dim_ref_conv: int = 16
    """Channels of the latents of that image."""
    add_control_adapter: bool = False
    """Whether the path of a camera is an input."""
    in_dim_control_adapter: int = 24
    downscale_factor_control_adapter: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.add_control_adapter:
            raise ValueError(
                "add_control_adapter=True: control by the path of a camera is not supported; use another checkpoint"
            )
        if self.patch_size[0] != 1 and self.add_ref_conv:
            raise ValueError(f"patch_size={self.patch_size}: must be of one frame, as the reference image is one")

    @classmethod
    def from_official(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> "WanFunArchConfig":
        """The config that VideoX-Fun's `config.json` describes; what it leaves out, the tensors say.

        Raises:
            ValueError: as of the Wan transformer, or the path of a camera is an input.
        """
        given = {key: value for key, value in raw.items() if key not in ALIASES}
        if "ref_conv.weight" in shapes:
            given |= {"add_ref_conv": True, "in_dim_ref_conv": shapes["ref_conv.weight"][1]}
        if "control_adapter.conv.weight" in shapes:
            given["add_control_adapter"] = True
        arch = super().from_official(given, shapes)
        assert isinstance(arch, WanFunArchConfig)
        return arch
