"""The cases about components of Wan 2.1: their sizes, and the arithmetic that they take. No torch here.

A multiplication and an addition are two operations. Only matrix products, convolutions and attention count.
"""

import math
from collections.abc import Mapping
from typing import Any

from fastvideo.entrypoints.bench.records import Case, Size

TEXT_ROWS = 512
"""Rows of text that the reference gives its transformer, most of them padding."""


def dit_flops(config: Mapping[str, Any], shape: tuple[int, ...]) -> float:
    """Of one forward of the transformer on latents of `shape` (t, h, w), batch 1.

    With L tokens of width d, a feed-forward of width f and S rows of text, a layer takes L (8 d^2 + 4 d^2 + 4 d f) for
    the projections of self-attention, those of cross-attention and the feed-forward, 4 d^2 S for the keys and values of
    the text, and 4 L d (L + S) for both attentions. Once there are 2 S (text_dim d + d^2) for the text, and 4 L d p
    for patches of p numbers going in and out.
    """
    d, f = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    tokens = math.prod(shape) // 4
    layer = tokens * (12 * d * d + 4 * d * f) + 4 * d * d * TEXT_ROWS + 4 * tokens * d * (tokens + TEXT_ROWS)
    text = 2 * TEXT_ROWS * (config["text_dim"] * d + d * d)
    return config["num_layers"] * layer + text + 4 * tokens * d * 4 * config["in_channels"]


def text_flops(config: Mapping[str, Any], shape: tuple[int, ...]) -> float:
    """Of one forward of the text encoder on `shape` (S,) tokens.

    With width d, inner width i of the attention and f of the gated feed-forward, a layer takes S (8 d i + 6 d f) for
    the projections and 4 S^2 i for attention.
    """
    (tokens,) = shape
    d, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    return config["num_layers"] * (tokens * (8 * d * inner + 6 * d * config["d_ff"]) + 4 * tokens**2 * inner)


def decode_flops(config: Mapping[str, Any], shape: tuple[int, ...]) -> float:
    """Of decoding a video of `shape` (frames, height, width).

    A convolution takes 2 * inputs * outputs * kernel for each of the positions that it gives; see `_resnet`,
    `_attention`. The first frame is not doubled in time, so t latents become 1 + 2 (t - 1) frames twice.
    """
    t, h, w = 1 + (shape[0] - 1) // 4, shape[1] // 8, shape[2] // 8
    z, base, mult = config["z_dim"], config["base_dim"], config["dim_mult"]
    dims = [base * m for m in (mult[-1], *mult[::-1])]
    flops = _conv(z, z, 1, t * h * w) + _conv(z, dims[0], 27, t * h * w) + _middle(dims[0], t, h * w)
    for level, (before, out) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        width = before // 2 if level else before
        for block in range(config["num_res_blocks"] + 1):
            flops += _resnet(width if block == 0 else out, out, t * h * w)
        if level < len(mult) - 1:
            if config["temperal_downsample"][::-1][level]:
                flops += _conv(out, 2 * out, 3, (t - 1) * h * w)
                t = 1 + 2 * (t - 1)
            h, w = 2 * h, 2 * w
            flops += _conv(out, out // 2, 9, t * h * w)
    return flops + _conv(dims[-1], 3, 27, t * h * w)


def encode_flops(config: Mapping[str, Any], shape: tuple[int, ...]) -> float:
    """Of encoding a video of `shape` (frames, height, width): the decoder's sums the other way, with one residual
    block a level less."""
    t, h, w = shape
    z, base, mult = config["z_dim"], config["base_dim"], config["dim_mult"]
    dims = [base * m for m in (1, *mult)]
    flops = _conv(3, dims[0], 27, t * h * w)
    for level, (before, out) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        for block in range(config["num_res_blocks"]):
            flops += _resnet(before if block == 0 else out, out, t * h * w)
        if level < len(mult) - 1:
            h, w = h // 2, w // 2
            flops += _conv(out, out, 9, t * h * w)
            if config["temperal_downsample"][level]:
                flops += _conv(out, out, 3, (t - 1) // 2 * h * w)
                t = 1 + (t - 1) // 2
    flops += _middle(dims[-1], t, h * w)
    return flops + _conv(dims[-1], 2 * z, 27, t * h * w) + _conv(2 * z, 2 * z, 1, t * h * w)


def _conv(inputs: int, outputs: int, kernel: int, positions: int) -> float:
    return 2.0 * inputs * outputs * kernel * positions


def _resnet(inputs: int, outputs: int, positions: int) -> float:
    """Two convolutions of 3x3x3, and one of 1 where the width changes."""
    shortcut = _conv(inputs, outputs, 1, positions) if inputs != outputs else 0
    return _conv(inputs, outputs, 27, positions) + _conv(outputs, outputs, 27, positions) + shortcut


def _middle(dim: int, frames: int, area: int) -> float:
    """Two residual blocks, and attention within each frame: 8 d^2 for each position's projections, and 4 d for each
    pair of positions."""
    return 2 * _resnet(dim, dim, frames * area) + frames * area * (8 * dim * dim + 4 * dim * area)


def _dit(heads: int, head_dim: int, ffn_dim: int, layers: int, text_dim: int = 4096) -> dict[str, Any]:
    return {
        "_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2], "num_attention_heads": heads,
        "attention_head_dim": head_dim, "in_channels": 16, "out_channels": 16, "text_dim": text_dim, "freq_dim": 256,
        "ffn_dim": ffn_dim, "num_layers": layers, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6, "rope_max_seq_len": 1024,
    }  # fmt: skip


def _vae(base_dim: int) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKLWan", "base_dim": base_dim, "z_dim": 16, "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2, "attn_scales": [], "temperal_downsample": [False, True, True], "dropout": 0.0,
    }  # fmt: skip


def _text(d_model: int, d_kv: int, d_ff: int, heads: int, layers: int) -> dict[str, Any]:
    return {
        "_class_name": "UMT5EncoderModel", "architectures": ["UMT5EncoderModel"], "model_type": "umt5",
        "vocab_size": 512, "d_model": d_model, "d_kv": d_kv, "d_ff": d_ff, "num_heads": heads, "num_layers": layers,
        "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "tie_word_embeddings": True,
    }  # fmt: skip


DIT_1_3B, DIT_1_3B_4, DIT_14B = _dit(12, 128, 8960, 30), _dit(12, 128, 8960, 4), _dit(40, 128, 13824, 40)
TINY_DIT, VAE, NARROW_VAE, TINY_VAE = _dit(3, 20, 100, 2, text_dim=36), _vae(96), _vae(16), _vae(6)
UMT5_XXL_2, TINY_UMT5 = _text(4096, 64, 10240, 64, 2), _text(36, 12, 52, 3, 2)


def _dit_case(name: str, about: str, grid: tuple[int, int, int], config: Mapping[str, Any], **more: Any) -> Case:
    tiny = Size(config=TINY_DIT, shape=(min(grid[0], 3), 6, 8))
    return Case(name=name, about=about, kind="dit", real=Size(config=config, shape=grid), tiny=tiny, **more)


def _vae_case(frames: int, height: int, width: int, kind: str, **more: Any) -> Case:
    shape = (frames, height, width)
    # a frame sees none that come later: the first latents alone give the first frames
    exact = None if frames * height * width < 10**6 else 5
    return Case(
        name=f"{kind}-{frames}x{height}x{width}",
        about=f"VAE {kind.removeprefix('vae-')}, {frames} frames of {width}x{height}",
        kind=kind,
        real=Size(config=VAE, shape=shape, exact_frames=exact),
        tiny=Size(config=TINY_VAE, shape=(9 if exact else 5, 32, 48), exact_frames=exact),
        **more,
    )


COMPONENT_CASES = (
    _dit_case(
        "dit-3120", "transformer at 1.3B width, 3,120 tokens", (2, 60, 104), DIT_1_3B_4,
        full=Size(config=DIT_1_3B, shape=(2, 60, 104)),
    ),
    _dit_case(
        "dit-7800", "transformer at 1.3B width, 7,800 tokens", (5, 60, 104), DIT_1_3B_4,
        full=Size(config=DIT_1_3B, shape=(5, 60, 104)),
    ),
    _dit_case("dit-1.3b", "transformer of 1.3B, 832x480x81", (21, 60, 104), DIT_1_3B, cuda_only=True),
    _dit_case("dit-14b", "transformer of 14B, 832x480x81", (21, 60, 104), DIT_14B, cuda_only=True),
    *(_vae_case(*size, kind) for kind in ("vae-decode", "vae-encode") for size in ((5, 240, 416), (17, 480, 832))),
    _vae_case(81, 480, 832, "vae-decode", cuda_only=True),
    Case(
        name="vae-decode-longer",
        about="VAE decode at a sixth of its width, 29 and 113 frames of 128x128",
        kind="vae-decode",
        real=Size(config=NARROW_VAE, shape=(29, 128, 128)),  # two parts of as many frames as go through at once
        tiny=Size(config=TINY_VAE, shape=(5, 32, 48)),
        times=4,
    ),
    Case(
        name="text-encoder-512",
        about="text encoder at UMT5-XXL width, 512 tokens",
        kind="text-encoder",
        real=Size(config=UMT5_XXL_2, shape=(512,)),
        tiny=Size(config=TINY_UMT5, shape=(24,)),
    ),
)  # fmt: skip
LOAD_CASE = Case(
    name="load",
    about="load a random repo stored in fp32",
    kind="load",
    real=Size(config={"transformer": DIT_1_3B_4, "vae": VAE, "text_encoder": _text(4096, 64, 10240, 64, 1)}, shape=()),
    tiny=Size(config={"transformer": TINY_DIT, "vae": TINY_VAE, "text_encoder": TINY_UMT5}, shape=()),
)
