"""Arch configs of the T5 and UMT5 text encoders and their checkpoint names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fastvideo.configs.models.base import ArchConfig, ParamNamesMapping, Rename, shape_of, stacked

_ATTENTION = "encoder.block.*.layer.0.SelfAttention"
_FFN = "encoder.block.*.layer.1.DenseReluDense"

_EMBEDDING_NAMES = ("shared.weight", "encoder.embed_tokens.weight")


def _transformers_names(*ffn_in: str) -> ParamNamesMapping:
    """Names in a Transformers repo; `ffn_in` are those of the first feed-forward weights, the gate first."""
    return ParamNamesMapping(
        rules=(
            *(Rename(name, "embedding.weight") for name in _EMBEDDING_NAMES),
            *stacked((f"{_ATTENTION}.{x}.weight" for x in "qkv"), "blocks.*.attn.qkv.weight"),
            Rename(f"{_ATTENTION}.o.weight", "blocks.*.attn.out.weight"),
            Rename(f"{_ATTENTION}.relative_attention_bias.weight", "blocks.*.attn.position_bias.weight"),
            Rename("encoder.block.*.layer.0.layer_norm.weight", "blocks.*.attn_norm.weight"),
            *stacked((f"{_FFN}.{name}.weight" for name in ffn_in), "blocks.*.ffn.fc_in.weight"),
            Rename(f"{_FFN}.wo.weight", "blocks.*.ffn.fc_out.weight"),
            Rename("encoder.block.*.layer.1.layer_norm.weight", "blocks.*.ffn_norm.weight"),
            Rename("encoder.final_layer_norm.weight", "norm.weight"),
        ),
        tied=(_EMBEDDING_NAMES,),
    )


TRANSFORMERS_NAMES = _transformers_names("wi")
GATED_TRANSFORMERS_NAMES = _transformers_names("wi_0", "wi_1")


def _gguf_names(*ffn_in: str) -> ParamNamesMapping:
    """Names in the GGUF files of llama.cpp, of whose encoder this is; `ffn_in` as in `_transformers_names`."""
    block = "enc.blk.*"
    return ParamNamesMapping(
        rules=(
            Rename("token_embd.weight", "embedding.weight"),
            *stacked((f"{block}.attn_{x}.weight" for x in "qkv"), "blocks.*.attn.qkv.weight"),
            Rename(f"{block}.attn_o.weight", "blocks.*.attn.out.weight"),
            Rename(f"{block}.attn_rel_b.weight", "blocks.*.attn.position_bias.weight"),
            Rename(f"{block}.attn_norm.weight", "blocks.*.attn_norm.weight"),
            *stacked((f"{block}.{name}.weight" for name in ffn_in), "blocks.*.ffn.fc_in.weight"),
            Rename(f"{block}.ffn_down.weight", "blocks.*.ffn.fc_out.weight"),
            Rename(f"{block}.ffn_norm.weight", "blocks.*.ffn_norm.weight"),
            Rename("enc.output_norm.weight", "norm.weight"),
        ),
        drop=("dec.*", "output.weight"),
    )


GGUF_NAMES = _gguf_names("ffn_up")
GATED_GGUF_NAMES = _gguf_names("ffn_gate", "ffn_up")

OFFICIAL_NAMES = ParamNamesMapping(
    rules=(
        Rename("token_embedding.weight", "embedding.weight"),
        *stacked((f"blocks.*.attn.{x}.weight" for x in "qkv"), "blocks.*.attn.qkv.weight"),
        Rename("blocks.*.attn.o.weight", "blocks.*.attn.out.weight"),
        Rename("blocks.*.pos_embedding.embedding.weight", "blocks.*.attn.position_bias.weight"),
        Rename("blocks.*.norm1.weight", "blocks.*.attn_norm.weight"),
        *stacked(("blocks.*.ffn.gate.0.weight", "blocks.*.ffn.fc1.weight"), "blocks.*.ffn.fc_in.weight"),
        Rename("blocks.*.ffn.fc2.weight", "blocks.*.ffn.fc_out.weight"),
        Rename("blocks.*.norm2.weight", "blocks.*.ffn_norm.weight"),
    )
)


@dataclass(frozen=True, kw_only=True)
class T5ArchConfig(ArchConfig):
    """Fields of a `T5EncoderModel` `config.json`, under their names there (defaults: t5-small)."""

    gguf_architectures: ClassVar[tuple[str, ...]] = ("t5encoder", "t5")
    ignored_keys: ClassVar[tuple[str, ...]] = (
        "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "is_encoder_decoder",
        "use_cache", "num_decoder_layers", "decoder_start_token_id", "eos_token_id", "bos_token_id", "pad_token_id",
        "dropout_rate", "classifier_dropout", "initializer_factor", "tie_word_embeddings", "scalable_attention",
        "output_past", "is_gated_act", "dense_act_fn", "tokenizer_class", "n_positions", "task_specific_params",
        "is_decoder", "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "return_dict",
        "output_attentions", "output_hidden_states", "scale_decoder_outputs",
    )  # fmt: skip

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"

    @property
    def head_dim(self) -> int:
        return self.d_kv

    @property
    def tensor_parallel_widths(self) -> Mapping[str, int]:
        return {"num_heads": self.num_heads, "d_ff": self.d_ff}

    @property
    def gated(self) -> bool:
        """Whether the feed-forward multiplies a linear branch with an activated one."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def param_names_mapping(self) -> ParamNamesMapping:
        return GATED_TRANSFORMERS_NAMES if self.gated else TRANSFORMERS_NAMES

    @property
    def gguf_param_names_mapping(self) -> ParamNamesMapping | None:
        return GATED_GGUF_NAMES if self.gated else GGUF_NAMES

    @property
    def shared_position_bias(self) -> bool:
        """Whether only the first layer has a position bias, which the others then use too."""
        return True

    def __post_init__(self) -> None:
        if self.feed_forward_proj not in ("relu", "gated-gelu"):
            raise ValueError(f"feed_forward_proj={self.feed_forward_proj!r}: must be 'relu' or 'gated-gelu'")


@dataclass(frozen=True, kw_only=True)
class UMT5ArchConfig(T5ArchConfig):
    """Fields of a `UMT5EncoderModel` `config.json` (defaults: those of Transformers, umt5-small)."""

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"

    @property
    def shared_position_bias(self) -> bool:
        return False

    @property
    def official_param_names_mapping(self) -> ParamNamesMapping | None:
        return OFFICIAL_NAMES

    @classmethod
    def from_official(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> "UMT5ArchConfig":
        """The encoder of an official Wan folder, which comes without a config: its sizes are read off its tensors.

        Raises:
            ValueError: a tensor that decides a size is missing or misshapen.
        """
        vocab_size, d_model = shape_of(shapes, "token_embedding.weight", 2)
        num_buckets, num_heads = shape_of(shapes, "blocks.0.pos_embedding.embedding.weight", 2)
        blocks = {int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))}
        return cls(
            vocab_size=vocab_size,
            d_model=d_model,
            d_kv=shape_of(shapes, "blocks.0.attn.q.weight", 2)[0] // num_heads,
            d_ff=shape_of(shapes, "blocks.0.ffn.fc1.weight", 2)[0],
            num_layers=max(blocks) + 1,
            num_heads=num_heads,
            relative_attention_num_buckets=num_buckets,
        )
