"""Finished files: in a folder behind fsspec, under names that the server makes."""

import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from fastvideo.utils import atomic_path

CHUNK = 1 << 18


class FileStore:
    """A folder, local or remote. A file is there whole or not at all."""

    def __init__(self, url: str) -> None:
        """Open the folder of an fsspec URL, such as s3://bucket/videos.

        Raises:
            ValueError: nothing can be opened there; says why.
        """
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
            self._fs.makedirs(self._root, exist_ok=True)
        except (ImportError, OSError, ValueError) as error:
            raise ValueError(f"files_url={url!r}: cannot be opened ({error}); use a folder, or install its fsspec "
                             "package") from None  # fmt: skip
        self.local: Path | None = Path(self._root) if "file" in _protocols(self._fs) else None

    def put(self, local: Path, name: str) -> int:
        """Move a local file in as `name`; gives its size in bytes."""
        nbytes = local.stat().st_size
        if self.local is not None:
            with atomic_path(self.local / name) as temporary:
                shutil.move(local, temporary)
            return nbytes
        # an object store shows an upload once it is whole; elsewhere the rename does that
        temporary_name = f"{self._root}/.{uuid.uuid4().hex}"
        self._fs.put_file(str(local), temporary_name)
        self._fs.mv(temporary_name, f"{self._root}/{name}")
        local.unlink()
        return nbytes

    def write(self, data: bytes, name: str, folder: Path) -> int:
        """Put `data` in as `name`, by way of a file in `folder` of this machine; gives its size in bytes."""
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            return self.put(Path(file.name), name)
        finally:
            Path(file.name).unlink(missing_ok=True)

    def path(self, name: str) -> Path | None:
        """Where `name` lies on this machine; None when it lies elsewhere."""
        return None if self.local is None else self.local / name

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._fs.exists(f"{self._root}/{name}"))

    def read(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes of a file from `start` up to `end`, in pieces.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self._fs.open(f"{self._root}/{name}", "rb") as file:
            file.seek(start)
            left = None if end is None else end - start
            while left is None or left > 0:
                piece = file.read(CHUNK if left is None else min(CHUNK, left))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece

    def fetched(self, name: str, folder: Path) -> Path:
        """A copy of a file in a folder of this machine, made once."""
        path = folder / name
        if not path.exists():
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                for piece in self.read(name):
                    file.write(piece)
        return path

    def names(self) -> list[str]:
        """All files."""
        try:
            return [Path(found).name for found in self._fs.ls(self._root, detail=False, refresh=True)]
        except FileNotFoundError:  # an object store has no empty folders
            return []

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        try:
            self._fs.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def read_all(store: FileStore, name: str) -> bytes:
    """The bytes of a small file."""
    buffer = io.BytesIO()
    for piece in store.read(name):
        buffer.write(piece)
    return buffer.getvalue()
