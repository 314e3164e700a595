"""Arch config of the Wan video transformer (defaults: Wan2.1-T2V-14B) and its checkpoint names."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fastvideo.configs.models.base import ArchConfig, ParamNamesMapping, Rename, TransformerShape, shape_of, stacked

OFFICIAL_TYPES = ("t2v", "i2v", "flf2v", "ti2v", "vace", "animate")
"""Values of `model_type` in an official `config.json`."""


def _attention(theirs: str, ours: str, q: str, k: str, v: str, out: str, fused: bool) -> tuple[Rename, ...]:
    """Names of one attention of block `*`: self-attention keeps q, k and v in one matrix, cross-attention k and v."""
    block, inner = f"blocks.*.{theirs}", f"blocks.*.{ours}"
    if fused:
        qkv = stacked((f"{block}.{q}.*", f"{block}.{k}.*", f"{block}.{v}.*"), f"{inner}.qkv.*")
    else:
        kv = stacked((f"{block}.{k}.*", f"{block}.{v}.*"), f"{inner}.kv.*")
        qkv = (Rename(f"{block}.{q}.*", f"{inner}.q.*"), *kv)
    norms = Rename(f"{block}.norm_*.weight", f"{inner}.norm_*.weight")
    return (*qkv, Rename(f"{block}.{out}.*", f"{inner}.out.*"), norms)


DIFFUSERS_NAMES = ParamNamesMapping(
    rules=(
        *_attention("attn1", "self_attn", "to_q", "to_k", "to_v", "to_out.0", fused=True),
        *stacked(("blocks.*.attn2.add_k_proj.*", "blocks.*.attn2.add_v_proj.*"), "blocks.*.cross_attn.kv_image.*"),
        Rename("blocks.*.attn2.norm_added_k.weight", "blocks.*.cross_attn.norm_k_image.weight"),
        *_attention("attn2", "cross_attn", "to_q", "to_k", "to_v", "to_out.0", fused=False),
        Rename("blocks.*.to_gate_compress.*", "blocks.*.self_attn.gate.*"),
        Rename("blocks.*.norm2.*", "blocks.*.cross_norm.*"),
        Rename("blocks.*.ffn.net.0.proj.*", "blocks.*.ffn.fc_in.*"),
        Rename("blocks.*.ffn.net.2.*", "blocks.*.ffn.fc_out.*"),
        Rename("blocks.*.scale_shift_table", "blocks.*.modulation"),
        Rename("condition_embedder.time_embedder.linear_1.*", "time_embedder.fc_in.*"),
        Rename("condition_embedder.time_embedder.linear_2.*", "time_embedder.fc_out.*"),
        Rename("condition_embedder.time_proj.*", "time_proj.*"),
        Rename("condition_embedder.text_embedder.linear_1.*", "text_embedder.fc_in.*"),
        Rename("condition_embedder.text_embedder.linear_2.*", "text_embedder.fc_out.*"),
        Rename("condition_embedder.image_embedder.norm1.*", "image_embedder.norm_in.*"),
        Rename("condition_embedder.image_embedder.ff.net.0.proj.*", "image_embedder.mlp.fc_in.*"),
        Rename("condition_embedder.image_embedder.ff.net.2.*", "image_embedder.mlp.fc_out.*"),
        Rename("condition_embedder.image_embedder.norm2.*", "image_embedder.norm_out.*"),
        Rename("condition_embedder.image_embedder.pos_embed", "image_embedder.position"),
        Rename("scale_shift_table", "modulation_out"),
    ),
    # early checkpoints have a norm of queries of the image, which attends to nothing
    drop=(
        "rope.freqs_cos",
        "rope.freqs_sin",
        "blocks.*.attn2.norm_added_q.weight",
    ),
)

OFFICIAL_NAMES = ParamNamesMapping(
    rules=(
        *_attention("self_attn", "self_attn", "q", "k", "v", "o", fused=True),
        *stacked(("blocks.*.cross_attn.k_img.*", "blocks.*.cross_attn.v_img.*"), "blocks.*.cross_attn.kv_image.*"),
        Rename("blocks.*.cross_attn.norm_k_img.weight", "blocks.*.cross_attn.norm_k_image.weight"),
        *_attention("cross_attn", "cross_attn", "q", "k", "v", "o", fused=False),
        Rename("blocks.*.norm3.*", "blocks.*.cross_norm.*"),
        Rename("blocks.*.ffn.0.*", "blocks.*.ffn.fc_in.*"),
        Rename("blocks.*.ffn.2.*", "blocks.*.ffn.fc_out.*"),
        Rename("time_embedding.0.*", "time_embedder.fc_in.*"),
        Rename("time_embedding.2.*", "time_embedder.fc_out.*"),
        Rename("time_projection.1.*", "time_proj.*"),
        Rename("text_embedding.0.*", "text_embedder.fc_in.*"),
        Rename("text_embedding.2.*", "text_embedder.fc_out.*"),
        Rename("img_emb.proj.0.*", "image_embedder.norm_in.*"),
        Rename("img_emb.proj.1.*", "image_embedder.mlp.fc_in.*"),
        Rename("img_emb.proj.3.*", "image_embedder.mlp.fc_out.*"),
        Rename("img_emb.proj.4.*", "image_embedder.norm_out.*"),
        Rename("img_emb.emb_pos", "image_embedder.position"),
        Rename("head.head.*", "proj_out.*"),
        Rename("head.modulation", "modulation_out"),
    ),
    drop=("freqs",),
)


@dataclass(frozen=True, kw_only=True)
class WanVideoArchConfig(ArchConfig):
    """Fields of a `WanTransformer3DModel` `config.json`, under their names there."""

    keep_fp32: ClassVar[tuple[str, ...]] = ("time_embedder", "modulation", "cross_norm", "image_embedder.norm")
    gguf_architectures: ClassVar[tuple[str, ...]] = ("wan",)
    # small beside the blocks, and all tokens depend on them; docs/quantization.md has what each costs
    keep_unquantized: ClassVar[tuple[str, ...]] = ("time_proj", "text_embedder", "image_embedder", "proj_out")

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str = "rms_norm_across_heads"
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None
    gate_compress: bool = False
    """Whether self-attention has the gate branch of video sparse attention (arXiv 2505.13389). Configs in use do not
    say so; the weights do."""

    def with_weights(self, names: Collection[str]) -> "WanVideoArchConfig":
        found = any(".to_gate_compress." in name for name in names)
        return replace(self, gate_compress=found or self.gate_compress)

    @property
    def param_names_mapping(self) -> ParamNamesMapping:
        return DIFFUSERS_NAMES

    @property
    def official_param_names_mapping(self) -> ParamNamesMapping | None:
        return OFFICIAL_NAMES

    @property
    def gguf_param_names_mapping(self) -> ParamNamesMapping | None:
        return self.official_param_names_mapping

    @property
    def head_dim(self) -> int:
        return self.attention_head_dim

    @property
    def transformer_shape(self) -> TransformerShape:
        return TransformerShape(
            layers=self.num_layers,
            heads=self.num_attention_heads,
            hidden=self.hidden_size,
            channels=self.out_channels,
            patch_size=self.patch_size,
        )

    @property
    def tensor_parallel_widths(self) -> Mapping[str, int]:
        return {"num_attention_heads": self.num_attention_heads, "ffn_dim": self.ffn_dim}

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    def __post_init__(self) -> None:
        if self.qk_norm != "rms_norm_across_heads":
            raise ValueError(f"qk_norm={self.qk_norm!r}: Wan transformers use 'rms_norm_across_heads'")
        if (self.image_dim is None) != (self.added_kv_proj_dim is None):
            raise ValueError(
                f"image_dim={self.image_dim}, added_kv_proj_dim={self.added_kv_proj_dim}: a model that is shown images "
                "has both, another neither"
            )
        if self.added_kv_proj_dim not in (None, self.hidden_size):
            raise ValueError(f"added_kv_proj_dim={self.added_kv_proj_dim}: must be {self.hidden_size}, a token's width")
        if self.pos_embed_seq_len is not None and self.image_dim is None:
            raise ValueError(f"pos_embed_seq_len={self.pos_embed_seq_len}: needs image_dim")
        if self.attention_head_dim % 2:
            raise ValueError(f"attention_head_dim={self.attention_head_dim}: rotary embedding needs an even size")

    @classmethod
    def from_official(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> "WanVideoArchConfig":
        """The config that an official `config.json` (`_class_name` WanModel) describes.

        Raises:
            ValueError: a model type that is not known, a key that is missing or unknown, or sizes that do not divide.
        """
        kind = raw.get("model_type", "t2v")
        if kind not in OFFICIAL_TYPES:
            raise ValueError(f"model_type={kind!r}: must be one of {', '.join(OFFICIAL_TYPES)}")
        if raw.get("add_control_adapter") or "control_adapter.conv.weight" in shapes:
            raise ValueError(
                "control_adapter: control by the path of a camera is not supported; use another checkpoint"
            )
        names = {
            "ffn_dim": "ffn_dim", "freq_dim": "freq_dim", "in_dim": "in_channels", "out_dim": "out_channels",
            "num_layers": "num_layers", "num_heads": "num_attention_heads", "eps": "eps", "text_dim": "text_dim",
            "patch_size": "patch_size", "cross_attn_norm": "cross_attn_norm",
        }  # fmt: skip
        for key in ("dim", "num_heads"):
            if not isinstance(raw.get(key), int) or raw[key] < 1:
                raise ValueError(f"{key}={raw.get(key)!r}: config.json of a WanModel must give it, as a whole number")
        if raw["dim"] % raw["num_heads"]:
            raise ValueError(f"dim={raw['dim']}: must be a multiple of num_heads={raw['num_heads']}")
        known = {ours: raw[theirs] for theirs, ours in names.items() if theirs in raw}
        if "img_emb.proj.0.weight" in shapes:
            known |= {"image_dim": shape_of(shapes, "img_emb.proj.0.weight", 1)[0], "added_kv_proj_dim": raw["dim"]}
        if "img_emb.emb_pos" in shapes:
            known["pos_embed_seq_len"] = shape_of(shapes, "img_emb.emb_pos", 3)[1]
        ignored = {"dim", "model_type", "text_len", "qk_norm", "window_size"}
        rest = {key: value for key, value in raw.items() if key not in names and key not in ignored}
        return cls.from_dict({**known, "attention_head_dim": raw["dim"] // raw["num_heads"], **rest})
