"""Blocks of GGUF files, against the dequantization of the `gguf` package."""

from typing import Any

import pytest
import torch
from torch import nn

from fastvideo.layers.packed import PACKED, PackedEmbedding, PackedLinear, PackedWeight, dequantize
from tests.tiny_gguf import random_blocks

gguf: Any = pytest.importorskip("gguf")


@pytest.mark.parametrize("kind", PACKED)
def test_blocks_are_dequantized_as_by_the_gguf_package(kind: str) -> None:
    blocks = random_blocks(kind, 40)
    theirs = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind])
    assert torch.equal(dequantize(kind, blocks, torch.float32), torch.from_numpy(theirs).view(40, -1))


@pytest.mark.parametrize("kind", PACKED)
def test_sizes_of_blocks(kind: str) -> None:
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] == (PACKED[kind].numbers, PACKED[kind].nbytes)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_what_the_gguf_package_quantizes(kind: str) -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    packed = torch.from_numpy(gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind]))
    ours = dequantize(kind, packed.reshape(-1, PACKED[kind].nbytes), torch.float32).view(6, 64)
    assert (ours - weight).abs().max() < (0.03 if kind == "Q8_0" else 0.4)


def test_chunks_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = random_blocks("Q4_K", 33)
    whole = dequantize("Q4_K", blocks, torch.float32)
    monkeypatch.setattr("fastvideo.layers.packed.CHUNK", 1000)
    assert torch.equal(dequantize("Q4_K", blocks, torch.float32), whole)
    assert torch.equal(dequantize("Q4_K", blocks, torch.bfloat16), whole.bfloat16())


def matrix(*kinds: str | None) -> PackedWeight:
    """A weight of pieces of 4 rows of 512, one of each kind."""
    weight = PackedWeight(torch.Size((4 * len(kinds), 512)), len(kinds))
    for part, kind in enumerate(kinds):
        generator = torch.Generator().manual_seed(part)
        rows = torch.randn(4, 512, generator=generator).bfloat16()
        blocks = rows if kind is None else random_blocks(kind, 4 * 512 // PACKED[kind].numbers, part)
        weight.put(part, kind, blocks)
    return weight


def test_a_layer_of_pieces_of_several_kinds() -> None:
    weight = matrix("Q4_K", "Q8_0", None)
    dense = weight.dense(torch.float32)
    assert dense.shape == (12, 512)
    bias = nn.Parameter(torch.randn(12))
    x = torch.randn(2, 3, 512, generator=torch.Generator().manual_seed(9))
    layer = PackedLinear(weight, bias)
    assert torch.equal(layer(x), nn.functional.linear(x, dense, bias))
    assert layer(x.bfloat16().to(torch.float32)).dtype == torch.float32
    assert torch.equal(dense[:4], dequantize("Q4_K", weight.piece(0), torch.float32).view(4, 512))
    assert torch.equal(dense[8:], weight.piece(2).float())


@pytest.mark.parametrize("kind", ["Q6_K", "Q8_0", None])
def test_an_embedding_dequantizes_the_rows_it_is_asked_for(kind: str | None) -> None:
    weight = matrix(kind)
    ids = torch.tensor([[3, 0], [1, 1]])
    rows = PackedEmbedding(weight, torch.bfloat16)(ids)
    assert torch.equal(rows, weight.dense(torch.bfloat16)[ids])


@pytest.mark.slow
@pytest.mark.parametrize("kind", PACKED)
def test_compiled(kind: str) -> None:
    layer = PackedLinear(matrix(kind), None)
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = layer(x)
        found = torch.compile(layer)(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
