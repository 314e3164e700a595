"""Weight files: headers, streaming, and everything that is no weight file."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastvideo.models.loader import checkpoint
from fastvideo.models.loader.checkpoint import merge_headers, read_header, stream_tensors

STATE = {"b.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(4, dtype=torch.bfloat16)}


def save(path: Path, state: Any = STATE) -> Path:
    """`state` in a file of the format that its suffix says."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ".pt"])
def test_header_and_tensors(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"weights{suffix}")
    header = read_header(path)
    assert {name: (info.shape, info.dtype, info.file) for name, info in header.items()} == {
        name: (tuple(tensor.shape), tensor.dtype, path.name) for name, tensor in STATE.items()
    }
    assert (header["b.weight"].parameters, header["b.weight"].nbytes, header["a.bias"].nbytes) == (6, 24, 8)
    read = {name: tensor.clone() for name, tensor in stream_tensors([path], STATE)}
    assert all(torch.equal(read[name], tensor) for name, tensor in STATE.items())
    assert [name for name, _ in stream_tensors([path], {"a.bias"})] == ["a.bias"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_each_file_is_mapped_anew_every_so_many_bytes(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"w{index}": torch.full((100,), float(index)) for index in range(10)}
    path = save(tmp_path / f"weights{suffix}", state)
    opened: list[Path] = []
    getter = checkpoint._getter

    def counted(path: Path) -> Any:
        opened.append(path)
        return getter(path)

    monkeypatch.setattr(checkpoint, "_getter", counted)
    monkeypatch.setattr(checkpoint, "REMAP_BYTES", 1000)
    read = {name: tensor.clone() for name, tensor in stream_tensors([path], state)}
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    assert len(opened) == 5


def test_a_name_in_two_files(tmp_path: Path) -> None:
    headers = [read_header(save(tmp_path / name, {"w": torch.ones(2)})) for name in ("1.safetensors", "2.safetensors")]
    with pytest.raises(ValueError, match=r"'w': is both in 1\.safetensors and in 2\.safetensors"):
        merge_headers(headers)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_a_zip(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


class Hostile:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("hostile",)


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    (".safetensors", half, "truncated or broken .* download it again"),
    (".safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated or broken"),
    (".safetensors", lambda path: path.write_bytes(b"\x08"), "truncated or broken"),
    (".safetensors", lambda path: path.write_bytes(b""), "weight file is empty"),
    (".safetensors", lambda path: path.unlink(), "weight file is missing"),
    (".safetensors", lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    (".pth", half, "truncated or broken .* download it again"),
    (".pth", lambda path: path.write_bytes(b"PK\x03\x04"), "truncated or broken"),
    (".pth", lambda path: path.unlink(), "weight file is missing"),
    (".pth", lambda path: path.write_bytes(pickle.dumps(STATE)), "is not a file of weights as torch.save writes them"),
    (".pth", not_a_zip, "is not a file of weights as torch.save writes them"),
    (".pth", lambda path: torch.save({"w": Hostile()}, path), "pickle of something else than weights"),
    (".pth", lambda path: torch.save(torch.nn.Linear(2, 2), path), "pickle of something else than weights"),
    (".pth", lambda path: torch.save([torch.ones(2)], path), "holds a list, must be a state dict"),
    (".pth", lambda path: torch.save({}, path), "holds a dict, must be a state dict"),
    (".pth", lambda path: torch.save({"model": {"ema": STATE}}, path), "entry 'model.ema' is a dict, not a tensor"),
    (".pth", lambda path: torch.save({"step": 3}, path), "entry 'step' is a int, not a tensor"),
]


@pytest.mark.parametrize(("suffix", "break_file", "message"), BROKEN)
def test_what_is_no_weight_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, break_file: Callable[[Path], object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / f"weights{suffix}")
    break_file(path)
    with pytest.raises(ValueError, match=message) as error:
        read_header(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hostile").exists()


def test_a_dtype_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.safetensors", {"w": torch.ones(2, dtype=torch.float8_e8m0fnu)})
    with pytest.raises(ValueError, match="dtype F8_E8M0 cannot be loaded; convert the weights"):
        read_header(path)


def test_saved_parameters_and_views_are_read_as_plain_tensors(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.nn.Parameter(torch.arange(4.0)), "v": torch.arange(8.0)[2:4]}, buffer)
    path = tmp_path / "weights.pth"
    path.write_bytes(buffer.getvalue())
    read = {name: tensor.tolist() for name, tensor in stream_tensors([path], {"w", "v"})}
    assert read == {"w": [0, 1, 2, 3], "v": [2, 3]}
