"""Small model repos with random weights, written by `diffusers` and `transformers`, for tests to load.

Sizes are odd on purpose: 3 heads of 20 in the diffusion transformer, 3 heads of 12 in the text encoder.
"""

import json
import shutil
import string
from pathlib import Path
from typing import Any

import torch

from fastvideo.configs.models.vaes.wanvae import WAN22_LATENTS_MEAN, WAN22_LATENTS_STD

TEXT = """
a an the on and of red green blue yellow white black circle square triangle star moving left right up down background
cat walks kite flies over sea blurry low quality
"""


def make_tokenizer() -> Any:
    """A `transformers` T5 tokenizer, a Unigram model of `tokenizers`, of the words in `TEXT` and printable ASCII."""
    from transformers import T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [("▁", -4.0), *((f"▁{word}", -3.0) for word in TEXT.split())]
    letters = [(char, -8.0) for char in string.printable if not char.isspace()]
    return T5TokenizerFast(vocab=[*special, *pieces, *letters], extra_ids=0, model_max_length=512)


def make_text_encoder(vocab_size: int, kind: str = "umt5", seed: int = 0, **fields: Any) -> Any:
    """A random `transformers` encoder: `kind` "umt5" (gated) or "t5" (as `feed_forward_proj` says)."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    config_class, model_class = {"umt5": (UMT5Config, UMT5EncoderModel), "t5": (T5Config, T5EncoderModel)}[kind]
    sizes = {"d_model": 36, "d_kv": 12, "d_ff": 52, "num_layers": 3, "num_heads": 3}
    torch.manual_seed(seed)
    model = model_class(config_class(vocab_size=vocab_size, **{**sizes, "feed_forward_proj": "gated-gelu", **fields}))
    return randomize(model, seed)


def make_transformer(seed: int = 1, **fields: Any) -> Any:
    """A random `diffusers.WanTransformer3DModel`: 3 heads of 20, 3 layers."""
    from diffusers import WanTransformer3DModel

    sizes = {
        "num_attention_heads": 3, "attention_head_dim": 20, "in_channels": 16, "out_channels": 16, "text_dim": 36,
        "freq_dim": 32, "ffn_dim": 100, "num_layers": 3,
    }  # fmt: skip
    torch.manual_seed(seed)
    return randomize(WanTransformer3DModel(**{**sizes, **fields}), seed)


def make_vae(seed: int = 2, **fields: Any) -> Any:
    """A random `diffusers.AutoencoderKLWan`: `base_dim` 6, `z_dim` 16, the published latent statistics."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    return randomize(AutoencoderKLWan(**{"base_dim": 6, "z_dim": 16, **fields}), seed)


RESIDUAL_VAE: dict[str, Any] = {
    "base_dim": 4, "decoder_base_dim": 8, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": list(WAN22_LATENTS_MEAN),
    "latents_std": list(WAN22_LATENTS_STD),
}  # fmt: skip
"""Fields of a small Wan 2.2 VAE."""


def make_image_encoder(seed: int = 4, **fields: Any) -> Any:
    """A random `transformers.CLIPVisionModel`: 3 heads of 8, 3 layers, images of 28 pixels in patches of 14."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {
        "hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 28,
        "patch_size": 14, "hidden_act": "gelu",
    }  # fmt: skip
    torch.manual_seed(seed)
    return randomize(CLIPVisionModel(CLIPVisionConfig(**{**sizes, **fields})), seed)


def make_image_processor(size: int = 28) -> Any:
    """The processor of that encoder."""
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def make_scheduler(scheduler: str, flow_shift: float) -> Any:
    """`scheduler` "unipc" (as Wan repos have it) or "euler"."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    if scheduler == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=flow_shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=flow_shift
    )


def randomize(model: Any, seed: int) -> Any:
    """`model` in fp32 and eval mode with no parameter left at a constant, so that a mix-up of two shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.float().eval()


def make_wan_repo(
    path: Path,
    scheduler: str = "unipc",
    flow_shift: float = 3.0,
    max_shard_size: str = "10GB",
    seed: int = 0,
    encoder: str = "umt5",
    dtype: torch.dtype = torch.float32,
    transformer: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    text_encoder: dict[str, Any] | None = None,
) -> Path:
    """A Diffusers repo of a Wan 2.1 text-to-video pipeline in folder `path`.

    Args:
        path: the folder; made when it is not there.
        scheduler: "unipc" or "euler".
        flow_shift: of the scheduler.
        max_shard_size: such as "40KB", to have the weights in several files with an index.
        seed: of the weights.
        encoder: "umt5" or "t5".
        dtype: of the stored weights.
        transformer: config fields of the transformer that differ from `make_transformer`'s.
        vae: config fields of the VAE that differ from `make_vae`'s.
        text_encoder: config fields of the text encoder that differ from `make_text_encoder`'s.

    Returns:
        `path`.
    """
    from diffusers import WanPipeline

    tokenizer = make_tokenizer()
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(len(tokenizer), encoder, seed=3 * seed, **(text_encoder or {})),
        transformer=make_transformer(seed=3 * seed + 1, **(transformer or {})),
        vae=make_vae(seed=3 * seed + 2, **(vae or {})),
        scheduler=make_scheduler(scheduler, flow_shift),
    )
    if dtype != torch.float32:
        for model in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
            torch.nn.Module.to(model, dtype)
    pipeline.save_pretrained(path, max_shard_size=max_shard_size)
    return path


def make_i2v_repo(
    path: Path,
    last: bool = False,
    scheduler: str = "unipc",
    seed: int = 0,
    transformer: dict[str, Any] | None = None,
    image_encoder: dict[str, Any] | None = None,
) -> Path:
    """A Diffusers repo of a Wan 2.1 image-to-video pipeline in folder `path`; with `last`, of first and last frame.

    Returns:
        `path`.
    """
    from diffusers import WanImageToVideoPipeline

    tokenizer = make_tokenizer()
    encoder = make_image_encoder(5 * seed + 4, **(image_encoder or {}))
    states = 1 + (encoder.config.image_size // encoder.config.patch_size) ** 2
    sizes = {
        "in_channels": 36, "image_dim": encoder.config.hidden_size, "added_kv_proj_dim": 60,
        "pos_embed_seq_len": 2 * states if last else None,
    }  # fmt: skip
    WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(len(tokenizer), seed=5 * seed),
        transformer=make_transformer(seed=5 * seed + 1, **{**sizes, **(transformer or {})}),
        vae=make_vae(seed=5 * seed + 2),
        scheduler=make_scheduler(scheduler, 16.0 if last else 3.0),
        image_encoder=encoder,
        image_processor=make_image_processor(encoder.config.image_size),
    ).save_pretrained(path)
    return path


def make_wan22_repo(path: Path, images: bool = False, scheduler: str = "unipc", seed: int = 0) -> Path:
    """A Diffusers repo of a Wan 2.2 pipeline with two transformers in folder `path`; with `images`, image to video.

    Returns:
        `path`.
    """
    import diffusers

    tokenizer = make_tokenizer()
    channels = {"in_channels": 36} if images else {}
    pipeline_class = diffusers.WanImageToVideoPipeline if images else diffusers.WanPipeline
    pipeline_class(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(len(tokenizer), seed=5 * seed),
        transformer=make_transformer(seed=5 * seed + 1, **channels),
        transformer_2=make_transformer(seed=5 * seed + 3, **channels),
        vae=make_vae(seed=5 * seed + 2),
        scheduler=make_scheduler(scheduler, 5.0 if images else 12.0),
        boundary_ratio=0.9 if images else 0.875,
    ).save_pretrained(path)
    return path


def make_ti2v_repo(path: Path, scheduler: str = "unipc", seed: int = 0) -> Path:
    """A Diffusers repo of a Wan 2.2 text-and-image-to-video pipeline, with its VAE, in folder `path`.

    Returns:
        `path`.
    """
    from diffusers import WanPipeline

    tokenizer = make_tokenizer()
    WanPipeline(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(len(tokenizer), seed=5 * seed),
        transformer=make_transformer(seed=5 * seed + 1, in_channels=48, out_channels=48),
        vae=make_vae(seed=5 * seed + 2, **RESIDUAL_VAE),
        scheduler=make_scheduler(scheduler, 5.0),
        expand_timesteps=True,
    ).save_pretrained(path)
    return path


def make_renamed_repo(path: Path, source: Path, class_name: str) -> Path:
    """The repo `source` with another pipeline class in its index, in folder `path`.

    Returns:
        `path`.
    """
    shutil.copytree(source, path)
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps({**index, "_class_name": class_name}))
    return path


def make_lucy_repo(path: Path, scheduler: str = "unipc", seed: int = 0) -> Path:
    """A Diffusers repo of a Lucy Edit pipeline in folder `path`.

    Returns:
        `path`.
    """
    from diffusers import LucyEditPipeline

    tokenizer = make_tokenizer()
    LucyEditPipeline(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(len(tokenizer), seed=5 * seed),
        transformer=make_transformer(seed=5 * seed + 1, in_channels=96, out_channels=48),
        vae=make_vae(seed=5 * seed + 2, **RESIDUAL_VAE),
        scheduler=make_scheduler(scheduler, 5.0),
        expand_timesteps=True,
    ).save_pretrained(path)
    return path


def make_vace_repo(path: Path, scheduler: str = "unipc", seed: int = 0, two: bool = False) -> Path:
    """A Diffusers repo of a Wan 2.1 VACE pipeline in folder `path`: control blocks for layers 0 and 2 of 3; with `two`
    transformers of 2.2.

    Returns:
        `path`.
    """
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    tokenizer = make_tokenizer()
    transformers: list[Any] = []
    for number in (1, 3) if two else (1,):
        torch.manual_seed(5 * seed + number)
        model = WanVACETransformer3DModel(
            num_attention_heads=3, attention_head_dim=20, in_channels=16, out_channels=16, text_dim=36, freq_dim=32,
            ffn_dim=100, num_layers=3, vace_layers=[0, 2], vace_in_channels=96,
        )  # fmt: skip
        transformers.append(randomize(model, 5 * seed + number))
    WanVACEPipeline(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(len(tokenizer), seed=5 * seed),
        transformer=transformers[0],
        vae=make_vae(seed=5 * seed + 2),
        scheduler=make_scheduler(scheduler, 3.0),
        transformer_2=transformers[1] if two else None,
        boundary_ratio=0.875 if two else None,
    ).save_pretrained(path)
    return path


def make_animate_repo(
    path: Path,
    scheduler: str = "unipc",
    seed: int = 0,
    transformer: dict[str, Any] | None = None,
    image_encoder: dict[str, Any] | None = None,
    text_encoder: dict[str, Any] | None = None,
) -> Path:
    """A Diffusers repo of a Wan 2.2 Animate pipeline in folder `path`: layers 0 and 2 of 4 look at a face of 16x16.

    Returns:
        `path`.
    """
    from diffusers import WanAnimatePipeline, WanAnimateTransformer3DModel

    tokenizer, encoder = make_tokenizer(), make_image_encoder(5 * seed + 4, **(image_encoder or {}))
    sizes: dict[str, Any] = {
        "num_attention_heads": 3, "attention_head_dim": 20, "text_dim": 36, "freq_dim": 32, "ffn_dim": 100,
        "num_layers": 4, "image_dim": encoder.config.hidden_size, "added_kv_proj_dim": 60, "motion_encoder_size": 16,
        "motion_style_dim": 11, "motion_encoder_channel_sizes": {"4": 9, "8": 7, "16": 5}, "motion_dim": 6,
        "motion_encoder_dim": 13, "face_encoder_hidden_dim": 14, "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2, "motion_encoder_batch_size": 3,
    }  # fmt: skip
    torch.manual_seed(5 * seed + 1)
    model = randomize(WanAnimateTransformer3DModel(**{**sizes, **(transformer or {})}), 5 * seed + 1)
    WanAnimatePipeline(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(len(tokenizer), seed=5 * seed, **(text_encoder or {})),
        transformer=model,
        vae=make_vae(seed=5 * seed + 2),
        scheduler=make_scheduler(scheduler, 5.0),
        image_encoder=encoder,
        image_processor=make_image_processor(encoder.config.image_size),
    ).save_pretrained(path)
    return path
