"""A tensor that goes to another process of this machine in shared memory, which has no name and so cannot be left."""

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TensorLayout:
    """What a tensor's bytes mean."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@contextmanager
def stored(tensor: torch.Tensor) -> Iterator[tuple[int, TensorLayout]]:
    """The descriptor of a file in memory that holds `tensor`, which is on the CPU; closed when the block ends."""
    file = _file_in_memory()
    try:
        os.ftruncate(file, tensor.nbytes)
        layout = TensorLayout(tuple(tensor.shape), tensor.dtype)
        _mapped(file, layout, tensor.nbytes).copy_(tensor)
        yield file, layout
    finally:
        os.close(file)


def load(file: int, layout: TensorLayout) -> torch.Tensor:
    """The tensor that `stored` put into `file`, without a copy; closes the descriptor.

    Its memory is freed with the tensor.
    """
    try:
        return _mapped(file, layout, os.fstat(file).st_size)
    finally:
        os.close(file)


def _mapped(file: int, layout: TensorLayout, nbytes: int) -> torch.Tensor:
    # the tensor keeps the mapping, the mapping needs no file
    return torch.frombuffer(mmap.mmap(file, nbytes), dtype=layout.dtype).view(layout.shape)


def _file_in_memory() -> int:
    try:
        return os.memfd_create("fastvideo")
    except AttributeError:  # the system has none, or Python was built for one that has none
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
