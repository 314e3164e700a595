"""Weights held in the blocks of GGUF files, and dequantized layer by layer when they are used.

A block holds so many numbers of a few bits, and their scales. The formats are those of ggml (`ggml-quants.c`); the
tests compare with the `gguf` package, whose dequantization in NumPy is the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 1 << 19
"""Numbers that are dequantized at a time on a CPU, about: their fp32 copies stay in its cache."""


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The fp16 number [n, 1] at byte `start`, in fp32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _shifted(data: torch.Tensor, shifts: tuple[int, ...], mask: int) -> torch.Tensor:
    """`data` [n, g, k] of bytes, shifted right by each of `shifts` and masked: [n, g * shifts * k] in that order."""
    by = torch.tensor(shifts, dtype=torch.uint8, device=data.device)[:, None]
    return ((data.unsqueeze(2) >> by) & mask).flatten(1)


def _nibbles(data: torch.Tensor) -> torch.Tensor:
    """The 4 bits of `data` [n, k], the low ones of all bytes first: [n, 2 * k]."""
    return _shifted(data.unsqueeze(1), (0, 4), 15)


def _bits(data: torch.Tensor) -> torch.Tensor:
    """The bits of `data` [n, 4], each byte's lowest first: [n, 32]."""
    by = torch.arange(8, dtype=torch.uint8, device=data.device)
    return ((data.unsqueeze(-1) >> by) & 1).flatten(1)


def _q4_0(b: torch.Tensor) -> torch.Tensor:
    return _half(b, 0) * (_nibbles(b[:, 2:]).float() - 8)


def _q4_1(b: torch.Tensor) -> torch.Tensor:
    return _half(b, 0) * _nibbles(b[:, 4:]).float() + _half(b, 2)


def _q5_0(b: torch.Tensor) -> torch.Tensor:
    return _half(b, 0) * ((_nibbles(b[:, 6:]) | (_bits(b[:, 2:6]) << 4)).float() - 16)


def _q5_1(b: torch.Tensor) -> torch.Tensor:
    return _half(b, 0) * (_nibbles(b[:, 8:]) | (_bits(b[:, 4:8]) << 4)).float() + _half(b, 2)


def _q8_0(b: torch.Tensor) -> torch.Tensor:
    return _half(b, 0) * b[:, 2:].view(torch.int8).float()


def _scaled(numbers: torch.Tensor, scale: torch.Tensor, least: torch.Tensor | None = None) -> torch.Tensor:
    """`numbers` [n, 256] times `scale` [n, g], less `least` [n, g], where each group of 256 / g has its own."""
    grouped = numbers.float().unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)
    return (grouped if least is None else grouped - least.unsqueeze(-1)).flatten(1)


def _q2_k(b: torch.Tensor) -> torch.Tensor:
    scales = b[:, :16]
    numbers = _shifted(b[:, 16:80].unflatten(1, (2, 32)), (0, 2, 4, 6), 3)
    return _scaled(numbers, _half(b, 80) * (scales & 15).float(), _half(b, 82) * (scales >> 4).float())


def _q3_k(b: torch.Tensor) -> torch.Tensor:
    low = _shifted(b[:, 32:96].unflatten(1, (2, 32)), (0, 2, 4, 6), 3)
    high = _shifted(b[:, None, :32], (0, 1, 2, 3, 4, 5, 6, 7), 1)
    # 16 scales of 6 bits: the low 4 of all, then the high 2
    scales = _shifted(b[:, None, 96:104], (0, 4), 15) | (_shifted(b[:, None, 104:108], (0, 2, 4, 6), 3) << 4)
    return _scaled((low | (high << 2)).float() - 4, _half(b, 108) * (scales.float() - 32))


def _six_bits(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales and the least numbers [n, 8] of a block that begins with fp16 of both, then 12 bytes of 6 bits."""
    first, second, rest = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = torch.cat((first & 63, (rest & 15) | ((first >> 2) & 48)), dim=1)
    least = torch.cat((second & 63, (rest >> 4) | ((second >> 2) & 48)), dim=1)
    return _half(b, 0) * scale.float(), _half(b, 2) * least.float()


def _q4_k(b: torch.Tensor) -> torch.Tensor:
    return _scaled(_shifted(b[:, 16:].unflatten(1, (4, 32)), (0, 4), 15), *_six_bits(b))


def _q5_k(b: torch.Tensor) -> torch.Tensor:
    low = _shifted(b[:, 48:].unflatten(1, (4, 32)), (0, 4), 15)
    high = _shifted(b[:, None, 16:48], (0, 1, 2, 3, 4, 5, 6, 7), 1)
    return _scaled(low | (high << 4), *_six_bits(b))


def _q6_k(b: torch.Tensor) -> torch.Tensor:
    low = _shifted(b[:, :128].unflatten(1, (2, 64)), (0, 4), 15)
    high = _shifted(b[:, 128:192].unflatten(1, (2, 32)), (0, 2, 4, 6), 3)
    scale = _half(b, 208) * b[:, 192:208].view(torch.int8).float()
    return _scaled((low | (high << 4)).float() - 32, scale)


@dataclass(frozen=True)
class PackedType:
    """One format of blocks."""

    numbers: int
    """In a block."""
    nbytes: int
    """Of a block."""
    dequantize: Callable[[torch.Tensor], torch.Tensor]
    """From blocks [n, nbytes] of uint8 to numbers [n, numbers] of fp32."""


PACKED: dict[str, PackedType] = {
    "Q4_0": PackedType(32, 18, _q4_0),
    "Q4_1": PackedType(32, 20, _q4_1),
    "Q5_0": PackedType(32, 22, _q5_0),
    "Q5_1": PackedType(32, 24, _q5_1),
    "Q8_0": PackedType(32, 34, _q8_0),
    "Q2_K": PackedType(256, 84, _q2_k),
    "Q3_K": PackedType(256, 110, _q3_k),
    "Q4_K": PackedType(256, 144, _q4_k),
    "Q5_K": PackedType(256, 176, _q5_k),
    "Q6_K": PackedType(256, 210, _q6_k),
}
"""By the name that ggml gives the format."""


def dequantize(kind: str, blocks: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers [n, numbers] of `blocks` [n, bytes] of uint8, computed in fp32, in `dtype`.

    Args:
        kind: a name in `PACKED`.
    """
    packed = PACKED[kind]
    if blocks.device.type != "cpu" or torch.compiler.is_compiling():
        return packed.dequantize(blocks).to(dtype)
    out = torch.empty(len(blocks), packed.numbers, dtype=dtype)
    rows = max(1, CHUNK // packed.numbers)
    for start in range(0, len(blocks), rows):
        out[start : start + rows] = packed.dequantize(blocks[start : start + rows])
    return out


class PackedWeight(nn.Module):
    """A matrix whose rows are pieces, one below the other, each in the blocks of its format or of a floating type."""

    def __init__(self, shape: torch.Size, parts: int) -> None:
        super().__init__()
        self.shape = shape
        self.kinds: list[str | None] = [None] * parts
        for part in range(parts):
            self.register_buffer(f"piece_{part}", None)

    def put(self, part: int, kind: str | None, data: torch.Tensor) -> None:
        """Keep piece `part`: blocks [n, bytes] of the format `kind`, or for None the rows as they are."""
        self.kinds[part] = kind
        self.register_buffer(f"piece_{part}", data)

    def piece(self, part: int) -> torch.Tensor:
        """Piece `part` as it is held."""
        return self.get_buffer(f"piece_{part}")

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix."""
        pieces = []
        for part, kind in enumerate(self.kinds):
            data = self.piece(part)
            numbers = data.to(dtype) if kind is None else dequantize(kind, data, dtype)
            pieces.append(numbers.view(-1, self.shape[1]))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def rows(self, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows [..., columns] of a matrix of one piece; a row must be whole blocks."""
        kind, data = self.kinds[0], self.piece(0)
        if kind is None:
            return data[indices].to(dtype)
        by_row = data.view(self.shape[0], -1)[indices.flatten()]
        return dequantize(kind, by_row.view(-1, data.shape[1]), dtype).view(*indices.shape, self.shape[1])


class PackedLinear(nn.Module):
    """A linear layer that dequantizes its weight, in the dtype of its input, each time it runs."""

    def __init__(self, weight: PackedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.dense(x.dtype), self.bias)


class PackedEmbedding(nn.Module):
    """An embedding that dequantizes the rows that are looked up, and no others."""

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight
        self.dtype = dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight.rows(ids, self.dtype)
