"""Arch config of the Wan transformer with a control branch, and its checkpoint names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fastvideo.configs.models.base import ParamNamesMapping, Rename
from fastvideo.configs.models.dits.wanvideo import DIFFUSERS_NAMES, OFFICIAL_NAMES, WanVideoArchConfig


@cache
def with_control(names: ParamNamesMapping, layers: tuple[int, ...], proj_in: str, proj_out: str) -> ParamNamesMapping:
    """`names` of the main branch, and the same of the control blocks, which steer those in `layers`."""
    of_blocks = [rule for rule in names.rules if rule.source.startswith("blocks.*.")]
    rules = [Rename("vace_patch_embedding.*", "control_embedding.*")]
    for number, layer in enumerate(layers):
        theirs, ours = f"vace_blocks.{number}.", f"blocks.{layer}.control."
        rules += [
            Rename(f"{theirs}{old}.*", f"{ours}{new}.*") for old, new in ((proj_in, "proj_in"), (proj_out, "proj_out"))
        ]
        for rule in of_blocks:
            source, target = (name.removeprefix("blocks.*.") for name in (rule.source, rule.target))
            rules.append(replace(rule, source=theirs + source, target=ours + target))
    return replace(names, rules=(*rules, *names.rules))


@dataclass(frozen=True, kw_only=True)
class WanVACEArchConfig(WanVideoArchConfig):
    """Fields of a `WanVACETransformer3DModel` `config.json`, under their names there."""

    vace_layers: tuple[int, ...] = (0, 5, 10, 15, 20, 25, 30, 35)
    vace_in_channels: int = 96

    @property
    def param_names_mapping(self) -> ParamNamesMapping:
        return with_control(DIFFUSERS_NAMES, self.vace_layers, "proj_in", "proj_out")

    @property
    def official_param_names_mapping(self) -> ParamNamesMapping | None:
        return with_control(OFFICIAL_NAMES, self.vace_layers, "before_proj", "after_proj")

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = self.vace_layers == tuple(sorted(set(self.vace_layers)))
        if not rising or self.vace_layers[:1] != (0,) or self.vace_layers[-1] >= self.num_layers:
            raise ValueError(
                f"vace_layers={list(self.vace_layers)}: must rise from 0, and be layers of the {self.num_layers}"
            )
        if self.image_dim is not None:
            raise ValueError(f"image_dim={self.image_dim}: a model with a control branch is shown images by that")

    @classmethod
    def from_official(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> "WanVACEArchConfig":
        """The config that an official `config.json` (`_class_name` VaceWanModel) describes.

        Raises:
            ValueError: as of the model without control.
        """
        named = {"vace_in_channels" if key == "vace_in_dim" else key: value for key, value in raw.items()}
        arch = super().from_official(named, shapes)
        assert isinstance(arch, WanVACEArchConfig)
        return arch
