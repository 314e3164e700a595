"""GGUF files: their tensors by name, and the architecture that they say they are of.

The format is that of `docs/gguf.md` of ggml. The header is read here since a text encoder's holds a vocabulary of
hundreds of thousands of words, for each of which the `gguf` package makes several arrays; here they are skipped.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch

from fastvideo.layers.packed import PACKED

SUFFIX = ".gguf"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values in a header, as `struct` names them."""
STRING, ARRAY = 8, 9
FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""Types of tensors that are not in blocks."""
BLOCKS = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
}  # fmt: skip
"""Types of tensors that are, as ggml numbers them."""
PREFIX = "model.diffusion_model."
"""What some converters leave before each name."""
SHAPES = "comfy.gguf.orig_shape."
"""Before a tensor's name: its shape, where the file had to hold it in another."""


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor is."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None when it is in blocks."""
    kind: str | None
    """The format of its blocks, a name in `PACKED`."""
    start: int
    """Of its bytes in the file."""
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a file says about itself."""

    architecture: str | None
    tensors: dict[str, GGUFTensor]


class _Reader:
    """Values one after another from the bytes of a file."""

    def __init__(self, data: mmap) -> None:
        self.data = data
        self.at = 0

    def scalar(self, code: str) -> Any:
        """A number."""
        value = struct.unpack_from(f"<{code}", self.data, self.at)[0]
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        """A string."""
        length = self.scalar("Q")
        if length > len(self.data) - self.at:
            raise struct.error("a string goes past the end")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode("utf-8")

    def skip_text(self) -> None:
        """Past a string."""
        self.at += 8 + int(struct.unpack_from("<Q", self.data, self.at)[0])

    def value(self, kind: int) -> Any:
        """A value of type `kind`; of an array of numbers a tuple, and of any other array None."""
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise struct.error(f"a value of type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in SCALARS:
            size = struct.calcsize(f"<{SCALARS[inner]}")
            self.at += size * count
            few = count <= 16
            return struct.unpack_from(f"<{count}{SCALARS[inner]}", self.data, self.at - size * count) if few else None
        for _ in range(count):
            if inner == STRING:
                self.skip_text()
            else:
                self.value(inner)
        return None


def read_gguf(path: Path) -> GGUFHeader:
    """What is in GGUF file `path`; no tensor is read.

    Raises:
        ValueError: it is no such file, is truncated, or has a tensor of a type that cannot be loaded.
    """
    status = path.stat()
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, size: int, time: int) -> GGUFHeader:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        try:
            return _parse(_Reader(data), path, size)
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path}: GGUF file is truncated or broken ({error}); download it again") from None


def _parse(reader: _Reader, path: Path, size: int) -> GGUFHeader:
    if reader.data[:4] != b"GGUF":
        raise ValueError(f"{path}: is no GGUF file, which would begin with 'GGUF'; download it again")
    reader.at = 4
    version = reader.scalar("I")
    if version not in (2, 3):
        raise ValueError(f"{path}: GGUF version {version}, must be 2 or 3; convert the weights again")
    count, values = reader.scalar("Q"), reader.scalar("Q")
    found: dict[str, Any] = {}
    for _ in range(values):
        key = reader.text()
        found[key] = reader.value(reader.scalar("I"))
    infos = []
    for _ in range(count):
        name, dims = reader.text(), reader.scalar("I")
        # written the other way round: the fastest dimension first
        shape = tuple(reader.scalar("Q") for _ in range(dims))[::-1]
        infos.append((name, tuple(found.get(SHAPES + name) or shape), reader.scalar("I"), reader.scalar("Q")))
    alignment = found.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
        raise ValueError(f"{path}: GGUF file is broken: alignment {alignment!r}; download it again")
    base = -(-reader.at // alignment) * alignment
    prefixed = bool(infos) and all(name.startswith(PREFIX) for name, *_ in infos)
    tensors: dict[str, GGUFTensor] = {}
    for name, shape, kind, offset in infos:
        if offset % alignment:
            raise ValueError(f"{path}: GGUF file is broken: tensor {name!r} is not aligned; download it again")
        tensor = _tensor(path, name, shape, kind, base + offset)
        if tensor.start + tensor.nbytes > size:
            raise ValueError(f"{path}: GGUF file is truncated: tensor {name!r} goes past its end; download it again")
        name = name.removeprefix(PREFIX) if prefixed else name
        if name in tensors:
            raise ValueError(f"{path}: GGUF file is broken: tensor {name!r} is there twice; download it again")
        tensors[name] = tensor
    architecture = found.get("general.architecture")
    return GGUFHeader(architecture if isinstance(architecture, str) else None, tensors)


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, start: int) -> GGUFTensor:
    numbers = torch.Size(shape).numel()
    if kind in FLOATS:
        return GGUFTensor(shape, FLOATS[kind], None, start, numbers * FLOATS[kind].itemsize)
    if kind not in BLOCKS:
        known = ", ".join(("F32", "F16", "BF16", *BLOCKS.values()))
        raise ValueError(f"{path}: tensor {name!r} is of ggml type {kind}, which cannot be loaded; "
                         f"take a file of {known}")  # fmt: skip
    packed = PACKED[BLOCKS[kind]]
    if numbers % packed.numbers:
        raise ValueError(f"{path}: GGUF file is broken: tensor {name!r} of shape {list(shape)} is no whole number of "
                         f"{BLOCKS[kind]} blocks; download it again")  # fmt: skip
    return GGUFTensor(shape, None, BLOCKS[kind], start, numbers // packed.numbers * packed.nbytes)


def gguf_getter(path: Path) -> Callable[[str], torch.Tensor]:
    """A function from a name to the tensor over a mapping of `path` that lives as long as the function: of its shape,
    or where it is in blocks the blocks [n, bytes] of uint8."""
    header = read_gguf(path)
    data = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def get(name: str) -> torch.Tensor:
        tensor = header.tensors[name]
        flat = data[tensor.start : tensor.start + tensor.nbytes]
        if tensor.kind is not None:
            return flat.view(-1, PACKED[tensor.kind].nbytes)
        assert tensor.dtype is not None
        return flat.view(tensor.dtype).view(tensor.shape)

    return get
