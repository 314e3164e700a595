"""Small GGUF files, written by the `gguf` package, of the weights of a small repo."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastvideo.configs.models.base import ArchConfig
from fastvideo.layers.packed import PACKED
from fastvideo.models.loader.checkpoint import stream_tensors
from fastvideo.models.loader.component_loader import arch_of
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.loader.weights import checkpoint_state, module_state
from tests import official_repos, tiny_repos

SIZES = {"num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 2, "ffn_dim": 512, "text_dim": 256}
ENCODER_SIZES = {"d_model": 256, "d_kv": 64, "d_ff": 256, "num_layers": 2, "num_heads": 4}
"""Of a repo whose matrices are whole blocks of every format."""


def make_repo(path: Path) -> Path:
    """A tiny Wan repo of those sizes."""
    return tiny_repos.make_wan_repo(path, transformer=SIZES, text_encoder=ENCODER_SIZES)


def make_official_repo(path: Path) -> Path:
    """The same weights in the authors' own layout."""
    return official_repos.make_official_repo(path, transformer=SIZES, text_encoder=ENCODER_SIZES)


def state_of(repo: Path, component: str) -> tuple[dict[str, torch.Tensor], ArchConfig]:
    """The weights of a component under the names that GGUF files have, and its arch config."""
    source = resolve_repo(repo).components[component]
    arch = arch_of(source)
    state = {name: x.clone() for name, x in stream_tensors(source.weight_files, source.header())}
    names = arch.gguf_param_names_mapping
    assert names is not None
    return checkpoint_state(module_state(state, arch.param_names_mapping), names), arch


def blocks_of(kind: str, weight: torch.Tensor, seed: int) -> torch.Tensor:
    """`weight` [rows, columns] in blocks [rows, bytes] of `kind`, or for one that `gguf` does not write random blocks
    whose numbers are about as large."""
    import gguf

    if not kind.endswith("_K"):
        packed = gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType[kind])
        return torch.from_numpy(packed)
    blocks = random_blocks(kind, weight.numel() // PACKED[kind].numbers, seed, scale=2e-4)
    return blocks.view(weight.shape[0], -1)


def random_blocks(kind: str, count: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """`count` blocks of random bits, whose fp16 scales are of about that size."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (count, PACKED[kind].nbytes), generator=generator, dtype=torch.uint8)
    starts = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}
    for start in starts.get(kind, (0, 2)):
        blocks[:, start : start + 2] = (scale * torch.randn(count, 1, generator=generator)).half().view(torch.uint8)
    return blocks


def write_gguf(
    path: Path, state: Mapping[str, torch.Tensor], kind_of: Callable[[str], str], architecture: str | None = "wan",
    prefix: str = "", metadata: Callable[[Any], object] = lambda writer: None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """A GGUF file of `state`; `kind_of` says in which format a tensor of that name is.

    Returns:
        What the tensors are when they are dequantized, by the `gguf` package.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture or "none")
    if architecture is None:
        del writer.kv_data[0]["general.architecture"]
    metadata(writer)
    numbers: dict[str, torch.Tensor] = {}
    for seed, (name, tensor) in enumerate(state.items()):
        kind = kind_of(name)
        if kind in ("F32", "F16", "BF16"):
            dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
            data = tensor.to(dtype).contiguous()
            numbers[name] = data.float()
            raw = data.view(torch.uint8).numpy() if kind == "BF16" else data.numpy()
        else:
            raw = blocks_of(kind, tensor, seed).numpy()
            dense = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
            numbers[name] = torch.from_numpy(dense).view(tensor.shape)
        writer.add_tensor(prefix + name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


def mixed(*kinds: str) -> Callable[[str], str]:
    """Matrices of blocks in `kinds` by turns; the rest in F32, as published files have it."""
    seen: dict[str, str] = {}

    def kind_of(name: str) -> str:
        whole = ("norm", "modulation", "bias", "rel_b", "patch_embedding", "time_embedding.0", "head")
        if any(part in name for part in whole):
            return "F32"
        return seen.setdefault(name, kinds[len(seen) % len(kinds)])

    return kind_of
