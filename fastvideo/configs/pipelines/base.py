"""`PipelineConfig`: the precision of each component, and the few choices of wiring that users make."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from fastvideo.configs.base import Assignable, require_bool, require_number, require_whole
from fastvideo.utils import require, resolve

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(kw_only=True)
class PipelineConfig(Assignable):
    """Every field is assignable until a generator uses it; then `check` runs once."""

    dit_precision: str = "bf16"
    """Of the diffusion transformer: fp32, bf16 or fp16."""
    vae_precision: str = "fp32"
    """Of the VAE."""
    text_encoder_precisions: tuple[str, ...] = ("bf16",)
    """Of each text encoder, in order."""
    image_encoder_precision: str = "fp32"
    """Of the image encoder, where the pipeline has one."""
    flow_shift: float | None = None
    """Shift of the noise schedule towards noise; None is what the repo's own scheduler says."""
    vae_tiling: bool = False
    """Decode and encode in tiles that overlap and are blended: less memory, and a video that differs a little."""
    vae_tile_size: int = 256
    """Pixels a side of a tile; the next one begins after three quarters of it."""
    vae_sp: bool | None = None
    """Decode on all devices; None is yes when there are several."""
    text_len: int = 512
    """Tokens of text that the diffusion transformer sees, padding included."""

    @classmethod
    def from_pretrained(cls, model: str | Path) -> "PipelineConfig":
        """The config of `model`: a registered id, or a local folder.

        Raises:
            ValueError: nothing is registered for it; the message lists what is.
        """
        from fastvideo.configs.registry import entry_for

        config: PipelineConfig = resolve(entry_for(model).pipeline_config)()
        return config

    def with_precision(self, precision: str) -> "PipelineConfig":
        """A copy with `precision` for every component."""
        return dataclasses.replace(
            self,
            dit_precision=precision,
            vae_precision=precision,
            text_encoder_precisions=tuple(precision for _ in self.text_encoder_precisions),
            image_encoder_precision=precision,
        )

    def precision_of(self, component: str) -> str:
        """The precision of `component`, a name in `model_index.json` such as "transformer" or "text_encoder_2".

        Raises:
            ValueError: no field is about this component.
        """
        kind, _, number = re.fullmatch(r"(.*?)(_(\d+))?", component).group(1, 2, 3)  # type: ignore[union-attr]
        if kind == "transformer":
            return self.dit_precision
        if kind == "vae":
            return self.vae_precision
        if kind == "image_encoder":
            return self.image_encoder_precision
        require(kind == "text_encoder", "component", component, "has no precision field in PipelineConfig")
        index = int(number or 1) - 1
        known = self.text_encoder_precisions
        require(index < len(known), "text_encoder_precisions", known, f"has no entry for {component}", "add one")
        return known[index]

    def check(self) -> None:
        """Check every field.

        Raises:
            ValueError: the field, its value, the rule, and what to do.
        """
        rule = f"must be one of {', '.join(PRECISIONS)}"
        for name in ("dit_precision", "vae_precision", "image_encoder_precision"):
            require(getattr(self, name) in PRECISIONS, name, getattr(self, name), rule)
        several = self.text_encoder_precisions
        listed = isinstance(several, (tuple, list)) and len(several) > 0
        require(listed and all(item in PRECISIONS for item in several), "text_encoder_precisions", several,
                f"must be a tuple, one precision for each text encoder; each {rule}")  # fmt: skip
        if self.flow_shift is not None:
            require_number("flow_shift", self.flow_shift, 0)
            require(self.flow_shift > 0, "flow_shift", self.flow_shift, "must be more than 0")
        require_whole("text_len", self.text_len, 1)
        require_bool("vae_tiling", self.vae_tiling)
        if self.vae_sp is not None:
            require_bool("vae_sp", self.vae_sp)
        require_whole("vae_tile_size", self.vae_tile_size, 1)
        default = type(self).vae_tile_size
        require(self.vae_tiling or self.vae_tile_size == default, "vae_tile_size", self.vae_tile_size,
                "does nothing without vae_tiling", f"set vae_tiling=True, or leave it {default}")  # fmt: skip
        require(self.vae_tile_size % 4 == 0, "vae_tile_size", self.vae_tile_size,
                "must be a multiple of 4: tiles begin every three quarters of it")  # fmt: skip
