"""Arch configs: strict construction from JSON, and sizes read off official checkpoints."""

from typing import Any

import pytest

from fastvideo.configs.models.base import ArchConfig
from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig
from fastvideo.configs.models.encoders.clip import CLIPVisionArchConfig
from fastvideo.configs.models.encoders.t5 import T5ArchConfig, UMT5ArchConfig
from fastvideo.configs.models.vaes.wanvae import WanVAEArchConfig

WAN_1_3B_OFFICIAL: dict[str, Any] = {
    "_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 1536, "eps": 1e-06, "ffn_dim": 8960,
    "freq_dim": 256, "in_dim": 16, "model_type": "t2v", "num_heads": 12, "num_layers": 30, "out_dim": 16,
    "text_len": 512,
}  # fmt: skip

UMT5_XXL: dict[str, Any] = {
    "_name_or_path": "/x", "architectures": ["UMT5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64,
    "d_model": 4096, "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True, "is_gated_act": True,
    "layer_norm_epsilon": 1e-06, "model_type": "umt5", "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24,
    "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "scalable_attention": True, "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer", "torch_dtype": "bfloat16", "transformers_version": "4.48.0.dev0",
    "use_cache": True, "vocab_size": 256384,
}  # fmt: skip


def test_published_config_is_understood() -> None:
    arch = UMT5ArchConfig.from_dict(UMT5_XXL)
    assert (arch.d_model, arch.num_layers, arch.num_heads, arch.gated, arch.head_dim) == (4096, 24, 64, True, 64)


def test_official_transformer_config() -> None:
    arch = WanVideoArchConfig.from_official(WAN_1_3B_OFFICIAL, {})
    assert (arch.num_attention_heads, arch.attention_head_dim, arch.num_layers, arch.ffn_dim) == (12, 128, 30, 8960)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "s2v"}, "model_type='s2v': must be one of t2v, i2v"),
        ({"num_heads": 7}, "dim=1536: must be a multiple of num_heads=7"),
        ({"dim": None}, "dim=None"),
        ({"layers": 3}, "'layers'=3"),
    ],
)
def test_official_transformer_config_that_does_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WanVideoArchConfig.from_official({**WAN_1_3B_OFFICIAL, **change}, {})


@pytest.mark.parametrize(
    ("cls", "raw", "message"),
    [
        (WanVideoArchConfig, {"num_layer": 3}, r"'num_layer'=3: WanVideoArchConfig .* did you mean 'num_layers'\?"),
        (WanVideoArchConfig, {"num_layers": "3"}, "'num_layers'='3': must be int"),
        (WanVideoArchConfig, {"num_layers": True}, "'num_layers'=True: must be int"),
        (WanVideoArchConfig, {"patch_size": [1, 2]}, r"'patch_size'=\[1, 2\]"),
        (
            WanVideoArchConfig,
            {"image_dim": 1280},
            "image_dim=1280, added_kv_proj_dim=None: a model that",
        ),
        (WanVideoArchConfig, {"image_dim": 8, "added_kv_proj_dim": 8}, "added_kv_proj_dim=8: must be 5120"),
        (WanVideoArchConfig, {"pos_embed_seq_len": 514}, "pos_embed_seq_len=514: needs image_dim"),
        (CLIPVisionArchConfig, {"hidden_act": "relu"}, "hidden_act='relu': must be 'gelu' or 'quick_gelu'"),
        (CLIPVisionArchConfig, {"image_size": 225}, "image_size=225: must be at least 2, and a multiple"),
        (WanVideoArchConfig, {"qk_norm": None}, "'qk_norm'=None"),
        (WanVAEArchConfig, {"latents_mean": ["a"] * 16}, "latents_mean"),
        (WanVAEArchConfig, {"z_dim": 48}, "must have z_dim=48"),
        (WanVAEArchConfig, {"patch_size": 2, "scale_factor_spatial": 16}, "its square must divide out_channels=3"),
        (WanVAEArchConfig, {"scale_factor_spatial": 16}, "scale_factor_spatial=16"),
        (T5ArchConfig, {"feed_forward_proj": "gated-silu"}, "must be 'relu' or 'gated-gelu'"),
    ],
)
def test_bad_config_is_an_error_that_names_the_key(cls: type[ArchConfig], raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.from_dict(raw)


def test_numbers_that_json_writes_without_a_point_are_floats_too() -> None:
    assert WanVAEArchConfig.from_dict({"z_dim": 2, "latents_mean": [0, 1], "latents_std": [1, 2]}).z_dim == 2
    assert T5ArchConfig.from_dict({"layer_norm_epsilon": 0}).layer_norm_epsilon == 0


def test_official_text_encoder_sizes_come_from_its_tensors() -> None:
    shapes = {
        "token_embedding.weight": (256384, 4096), "blocks.0.attn.q.weight": (4096, 4096),
        "blocks.0.pos_embedding.embedding.weight": (32, 64), "blocks.0.ffn.fc1.weight": (10240, 4096),
        "blocks.23.norm1.weight": (4096,),
    }  # fmt: skip
    assert UMT5ArchConfig.from_official({}, shapes) == UMT5ArchConfig.from_dict(UMT5_XXL)


def test_official_vae_sizes_come_from_its_tensors() -> None:
    shapes = {
        "encoder.conv1.weight": (96, 3, 3, 3, 3), "decoder.head.2.weight": (3, 96, 3, 3, 3),
        "conv2.weight": (16, 16, 1, 1, 1),
    }  # fmt: skip
    assert WanVAEArchConfig.from_official({}, shapes) == WanVAEArchConfig()


def test_official_residual_vae() -> None:
    shapes = {
        "encoder.conv1.weight": (160, 12, 3, 3, 3), "decoder.head.2.weight": (12, 256, 3, 3, 3),
        "conv2.weight": (48, 48, 1, 1, 1), "encoder.downsamples.0.downsamples.0.residual.0.gamma": (160, 1, 1, 1),
    }  # fmt: skip
    arch = WanVAEArchConfig.from_official({}, shapes)
    assert (arch.z_dim, arch.base_dim, arch.decoder_base_dim, arch.is_residual) == (48, 160, 256, True)
    assert (arch.scale_factor_spatial, arch.patch_size, arch.latents_mean[47]) == (16, 2, -0.0667)


def test_official_image_transformer() -> None:
    raw = {**WAN_1_3B_OFFICIAL, "model_type": "flf2v", "in_dim": 36}
    shapes = {"img_emb.proj.0.weight": (1280,), "img_emb.emb_pos": (1, 514, 1280)}
    arch = WanVideoArchConfig.from_official(raw, shapes)
    assert (arch.image_dim, arch.added_kv_proj_dim, arch.pos_embed_seq_len, arch.in_channels) == (1280, 1536, 514, 36)


def test_official_image_encoder_sizes_come_from_its_tensors() -> None:
    shapes = {
        "visual.patch_embedding.weight": (1280, 3, 14, 14), "visual.pos_embedding": (1, 257, 1280),
        "visual.transformer.0.mlp.0.weight": (5120, 1280), "visual.transformer.31.norm1.weight": (1280,),
    }  # fmt: skip
    assert CLIPVisionArchConfig.from_official({}, shapes) == CLIPVisionArchConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=224,
        patch_size=14, hidden_act="gelu",
    )  # fmt: skip


@pytest.mark.parametrize("cls", [UMT5ArchConfig, WanVAEArchConfig, CLIPVisionArchConfig])
def test_official_checkpoint_of_something_else(cls: type[ArchConfig]) -> None:
    with pytest.raises(ValueError, match="missing from the checkpoint"):
        cls.from_official({}, {"other.weight": (3,)})


def test_no_official_format() -> None:
    with pytest.raises(ValueError, match="Diffusers-style repo"):
        T5ArchConfig.from_official({}, {})
    assert T5ArchConfig().official_param_names_mapping is None
