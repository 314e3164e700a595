"""Weight files: what is in them, and their tensors one after another. Nothing here knows what the names mean."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvideo.layers.packed import PACKED
from fastvideo.models.loader.gguf_file import SUFFIX as GGUF
from fastvideo.models.loader.gguf_file import gguf_getter, read_gguf

# Pages of a mapped file count as this process's memory once read; mapping it anew every so many bytes lets them go.
REMAP_BYTES = 64 << 20

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

PICKLED = (".pth", ".pt", ".bin")
"""Suffixes of files that `torch.save` writes."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a weight file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str
    """The file's name, for messages."""
    packed: str | None = None
    """The format of the blocks that it comes in, a name in `PACKED`; `dtype` is then what it is dequantized to."""

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        if self.packed is not None:
            return self.parameters // PACKED[self.packed].numbers * PACKED[self.packed].nbytes
        return self.parameters * self.dtype.itemsize


def safetensors_dtype(name: str, file: str) -> torch.dtype:
    """The dtype that a safetensors header calls `name`.

    Raises:
        ValueError: one that cannot be loaded.
    """
    if name not in SAFETENSORS_DTYPES:
        raise ValueError(f"{file}: dtype {name} cannot be loaded; convert the weights to one of F32, BF16, F16")
    return SAFETENSORS_DTYPES[name]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors in weight file `path`, by name; their data is not read.

    Raises:
        ValueError: the file is missing, truncated or no weight file; the message names it.
    """
    _check_file(path)
    if path.suffix == GGUF:
        return {
            name: TensorInfo(name, one.shape, one.dtype or torch.float32, path.name, one.kind)
            for name, one in read_gguf(path).tensors.items()
        }
    if path.suffix in PICKLED:
        tensors = _open_pickled(path)
        return {name: TensorInfo(name, tuple(x.shape), x.dtype, path.name) for name, x in tensors.items()}
    with open_safetensors(path) as file:
        found = {}
        for name in file.offset_keys():
            piece = file.get_slice(name)
            dtype = safetensors_dtype(piece.get_dtype(), str(path))
            found[name] = TensorInfo(name, tuple(piece.get_shape()), dtype, path.name)
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """The text that safetensors file `path` carries beside its tensors, by key.

    Raises:
        ValueError: the file is missing, truncated or no safetensors file; the message names it.
    """
    with open_safetensors(path) as file:
        return dict(file.metadata() or {})


def merge_headers(headers: Iterable[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """The tensors of several files as one checkpoint.

    Raises:
        ValueError: two files hold a tensor of one name.
    """
    merged: dict[str, TensorInfo] = {}
    for header in headers:
        for name, info in header.items():
            if name in merged:
                raise ValueError(
                    f"weight {name!r}: is both in {merged[name].file} and in {info.file}; remove the file that does "
                    "not belong, or download the folder again"
                )
            merged[name] = info
    return merged


def stream_tensors(paths: Iterable[Path], wanted: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The `wanted` tensors of weight files, on the CPU, in the order in which they lie there.

    The files are memory-mapped: a tensor's data is read when it is used, and let go soon after the next one is asked
    for. Copy what you keep.

    Raises:
        ValueError: a file is missing, truncated or no weight file.
    """
    for path in paths:
        yield from stream_file(path, {name: info for name, info in read_header(path).items() if name in wanted})


def stream_file(path: Path, wanted: Mapping[str, TensorInfo]) -> Iterator[tuple[str, torch.Tensor]]:
    """As `stream_tensors`, of one file whose header is known."""
    taken = 0
    get = _getter(path)
    for name, info in wanted.items():
        if taken + info.nbytes > REMAP_BYTES:
            taken = 0
            get = _getter(path)
        taken += info.nbytes
        yield name, get(name)


def _getter(path: Path) -> Any:
    """A function from a name to the tensor, over a fresh mapping of `path` that lives as long as the function."""
    if path.suffix == GGUF:
        return gguf_getter(path)
    if path.suffix in PICKLED:
        return _open_pickled(path).__getitem__
    return open_safetensors(path).get_tensor


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: weight file is missing; download it again")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: holds a Git LFS pointer, not weights; run 'git lfs pull' in the repo")
    if not start:
        raise ValueError(f"{path}: weight file is empty; download it again")


def open_safetensors(path: Path) -> Any:
    """The safetensors file `path`, mapped, whose `get_tensor` gives its tensors.

    Raises:
        ValueError: it is missing, truncated or broken.
    """
    from safetensors import SafetensorError, safe_open

    _check_file(path)
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{path}: weight file is truncated or broken ({error}); download it again") from None


def _open_pickled(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in `path`, mapped. Only tensors are unpickled, so a hostile file runs nothing.

    Where it holds several by name, as trainers save them, they are one whose names begin with those, and a dot.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if not zipped:
        raise ValueError(
            f"{path}: is not a file of weights as torch.save writes them today; if you trust it, load it and save its "
            "state dict again, as .safetensors best"
        )
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises whatever a broken file makes of it
        if "weights_only" in str(error).lower() or "Weights only" in str(error):
            raise ValueError(
                f"{path}: is a pickle of something else than weights, so it is not opened; "
                "save its state dict alone, as .safetensors best"
            ) from None
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(f"{path}: weight file is truncated or broken ({reason}); download it again") from None
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path}: holds a {type(value).__name__}, must be a state dict; save the state dict alone")
    for name, tensor in dict(value).items():
        if isinstance(name, str) and isinstance(tensor, dict) and tensor:
            value |= {f"{name}.{inner}": one for inner, one in value.pop(name).items()}
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"{path}: entry {name!r} is a {type(tensor).__name__}, not a tensor; save the state dict alone"
            )
    return value
