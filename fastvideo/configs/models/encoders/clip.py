"""Arch config of the CLIP vision encoder, its checkpoint names, and how it wants its images."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from fastvideo.configs.models.base import ArchConfig, ParamNamesMapping, Rename, shape_of, stacked


def _block_names(theirs: str, qkv: tuple[Rename, ...], names: Mapping[str, str]) -> tuple[Rename, ...]:
    return (*qkv, *(Rename(f"{theirs}.{old}.*", f"blocks.*.{new}.*") for old, new in names.items()))


@cache
def transformers_names(layers: int, prefix: str = "") -> ParamNamesMapping:
    """Names in a Transformers repo of `layers` layers, which begin with `prefix`.

    What comes after the layer before the last is not used: the model that looks at the image takes the states there.
    """
    block = f"{prefix}encoder.layers.*"
    return ParamNamesMapping(
        rules=(
            Rename(f"{prefix}embeddings.class_embedding", "class_embedding"),
            Rename(f"{prefix}embeddings.patch_embedding.weight", "patch_embedding.weight"),
            Rename(f"{prefix}embeddings.position_embedding.weight", "position_embedding"),
            Rename(f"{prefix}pre_layrnorm.*", "norm.*"),
            *_block_names(
                block,
                stacked((f"{block}.self_attn.{x}_proj.*" for x in "qkv"), "blocks.*.qkv.*"),
                {"self_attn.out_proj": "out", "layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc_in",
                 "mlp.fc2": "mlp.fc_out"},
            ),
        ),
        drop=(
            f"{prefix}encoder.layers.{layers - 1}.*", f"{prefix}post_layernorm.*", f"{prefix}embeddings.position_ids",
        ),
    )  # fmt: skip


@cache
def both_names(layers: int) -> ParamNamesMapping:
    """Names with and without `vision_model.` in front, as the version of Transformers has it."""
    new, old = transformers_names(layers), transformers_names(layers, "vision_model.")
    return ParamNamesMapping(rules=(*new.rules, *old.rules), drop=(*new.drop, *old.drop))


@cache
def official_names(layers: int) -> ParamNamesMapping:
    """Names in the file of image and text encoder that the authors of the video models publish."""
    block = "visual.transformer.*"
    return ParamNamesMapping(
        rules=(
            Rename("visual.cls_embedding", "class_embedding"),
            Rename("visual.patch_embedding.weight", "patch_embedding.weight"),
            Rename("visual.pos_embedding", "position_embedding"),
            Rename("visual.pre_norm.*", "norm.*"),
            *_block_names(
                block,
                (Rename(f"{block}.attn.to_qkv.*", "blocks.*.qkv.*"),),
                {"attn.proj": "out", "norm1": "norm1", "norm2": "norm2", "mlp.0": "mlp.fc_in", "mlp.2": "mlp.fc_out"},
            ),
        ),
        drop=(f"visual.transformer.{layers - 1}.*", "visual.post_norm.*", "visual.head", "textual.*", "log_scale"),
    )


@dataclass(frozen=True, kw_only=True)
class CLIPVisionArchConfig(ArchConfig):
    """Fields of a `CLIPVisionModel` `config.json`, under their names there."""

    ignored_keys: ClassVar[tuple[str, ...]] = (
        "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "attention_dropout", "dropout",
        "initializer_factor", "initializer_range", "projection_dim", "chunk_size_feed_forward", "id2label", "label2id",
        "output_attentions", "output_hidden_states", "problem_type", "return_dict",
    )  # fmt: skip

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.hidden_act not in ("gelu", "quick_gelu"):
            raise ValueError(f"hidden_act={self.hidden_act!r}: must be 'gelu' or 'quick_gelu'")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size={self.hidden_size}: must be a multiple of {self.num_attention_heads} heads")
        if self.num_hidden_layers < 2 or self.image_size % self.patch_size:
            raise ValueError(
                f"num_hidden_layers={self.num_hidden_layers}, image_size={self.image_size}: must be at least 2, and a "
                f"multiple of patch_size={self.patch_size}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def param_names_mapping(self) -> ParamNamesMapping:
        return both_names(self.num_hidden_layers)

    @property
    def official_param_names_mapping(self) -> ParamNamesMapping | None:
        return official_names(self.num_hidden_layers)

    @classmethod
    def from_official(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> "CLIPVisionArchConfig":
        """The encoder in the authors' file, which comes without a config: its sizes are those of its tensors, and a
        head has 80 numbers, as in ViT-H/14.

        Raises:
            ValueError: a tensor that decides a size is missing or misshapen.
        """
        width, channels, patch, _ = shape_of(shapes, "visual.patch_embedding.weight", 4)
        positions = shape_of(shapes, "visual.pos_embedding", 3)[1]
        layers = {int(found[1]) for name in shapes if (found := re.match(r"visual\.transformer\.(\d+)\.", name))}
        return cls(
            hidden_size=width,
            intermediate_size=shape_of(shapes, "visual.transformer.0.mlp.0.weight", 2)[0],
            num_hidden_layers=max(layers) + 1,
            num_attention_heads=max(1, width // 80),
            num_channels=channels,
            image_size=round((positions - 1) ** 0.5) * patch,
            patch_size=patch,
            hidden_act="gelu",
        )
