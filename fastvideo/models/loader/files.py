"""Where a repo's files come from: a local folder, or the Hugging Face Hub, file by file as they are asked for."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastvideo.configs.repo_index import CONFIG_FILES, list_folder
from fastvideo.logger import init_logger
from fastvideo.models.loader.checkpoint import PICKLED, TensorInfo, read_header, safetensors_dtype

logger = init_logger(__name__)

INDEX_FILES = ("model_index.json", *CONFIG_FILES)
"""What is read of every repo, so it is fetched at once."""


class RepoFiles(Protocol):
    """The files of a repo, by their names relative to it."""

    @property
    def names(self) -> frozenset[str]:
        """All files."""

    @property
    def revision(self) -> str | None:
        """The commit; None for a folder."""

    def fetch(self, names: Collection[str]) -> Path:
        """The local folder that holds the files `names`, under those names.

        Raises:
            ValueError: one cannot be had.
        """

    def here(self, names: Collection[str]) -> bool:
        """Whether files `names` are on this machine."""

    def header(self, name: str) -> dict[str, TensorInfo]:
        """The tensors in weight file `name`, without fetching their data."""


@dataclass(frozen=True)
class LocalFiles:
    """The files of a local folder."""

    folder: Path
    names: frozenset[str]
    revision: str | None = None
    hint: str = "download the repo again"
    """What to do about a missing file."""

    @classmethod
    def of(cls, folder: Path) -> "LocalFiles":
        """Those of `folder`."""
        return cls(folder, list_folder(folder))

    def fetch(self, names: Collection[str]) -> Path:
        for name in names:
            if not (self.folder / name).is_file():
                raise ValueError(f"{self.folder / name}: file is missing; {self.hint}")
        return self.folder

    def here(self, names: Collection[str]) -> bool:
        return all((self.folder / name).is_file() for name in names)

    def header(self, name: str) -> dict[str, TensorInfo]:
        return read_header(self.fetch((name,)) / name)


@dataclass(frozen=True)
class HubFiles:
    """The files of a Hub repo at one commit; what is fetched stays in the Hub's cache."""

    repo_id: str
    names: frozenset[str]
    revision: str

    def fetch(self, names: Collection[str]) -> Path:
        from huggingface_hub import snapshot_download

        paths = self._cached(names)
        if paths and len(paths) == len(names):
            # no question to the Hub: a commit does not change
            return paths[0].parents[next(iter(names)).count("/")]
        patterns = [name.replace("[", "[[]") for name in names]
        try:
            folder = Path(snapshot_download(self.repo_id, revision=self.revision, allow_patterns=patterns))
        except Exception as error:  # what a failing connection raises differs between versions of the Hub's client
            raise ValueError(
                f"model={self.repo_id!r}: download failed ({_first_line(error)}); what has arrived is kept, "
                "so try again, or give a local folder"
            ) from None
        return LocalFiles(folder, self.names, hint="check the network and try again").fetch(names)

    def here(self, names: Collection[str]) -> bool:
        return len(self._cached(names)) == len(names)

    def _cached(self, names: Collection[str]) -> list[Path]:
        """Those of `names` that the cache holds, where they are there."""
        from huggingface_hub import try_to_load_from_cache

        found = (try_to_load_from_cache(self.repo_id, name, revision=self.revision) for name in names)
        return [Path(path) for path in found if isinstance(path, str)]

    def header(self, name: str) -> dict[str, TensorInfo]:
        from huggingface_hub import HfApi, try_to_load_from_cache

        cached = try_to_load_from_cache(self.repo_id, name, revision=self.revision)
        if isinstance(cached, str):
            return read_header(Path(cached))
        if name.endswith(PICKLED):
            raise ValueError(f"{name}: is not in the cache, and its contents cannot be listed from afar; download it")
        try:
            meta = HfApi().parse_safetensors_file_metadata(self.repo_id, name, revision=self.revision)
        except Exception as error:
            raise ValueError(f"{name}: its header cannot be read from the Hub ({_first_line(error)})") from None
        return {
            key: TensorInfo(key, tuple(tensor.shape), safetensors_dtype(tensor.dtype, name), name)
            for key, tensor in meta.tensors.items()
        }


def hub_files(repo_id: str, revision: str | None = None, what: str = "model") -> RepoFiles:
    """The files of Hub repo `repo_id`, which option `what` names; without a network, what the cache holds of it.

    Raises:
        ValueError: no such repo or revision, no permission, or neither network nor cache has it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info: Any = HfApi().repo_info(repo_id, revision=revision)
    except GatedRepoError:
        raise ValueError(
            f"{what}={repo_id!r}: access is restricted; accept its terms on the Hub, then run 'hf auth login'"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(f"revision={revision!r}: {repo_id} has no such branch, tag or commit") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ValueError(
            f"{what}={repo_id!r}: the Hub has no such repo, or it is private; check the id, or run 'hf auth login'"
        ) from None
    except Exception as error:  # what a failing connection raises differs between versions of the Hub's client
        return _cached_files(repo_id, revision, _first_line(error), what)
    files = HubFiles(repo_id, frozenset(file.rfilename for file in info.siblings or ()), str(info.sha))
    if index := [name for name in files.names if name.rpartition("/")[2] in INDEX_FILES]:
        files.fetch(index)
    return files


def _cached_files(repo_id: str, revision: str | None, reason: str, what: str) -> LocalFiles:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
    except Exception:
        raise ValueError(
            f"{what}={repo_id!r}: is not in the local cache, and the Hub cannot be reached ({reason}); "
            "connect to the network, or give a local folder"
        ) from None
    logger.info("the Hub cannot be reached: using %s from the cache", repo_id)
    hint = "the Hub cannot be reached and the cache holds only a part of the repo: connect to the network once"
    # the cache names the folder of a snapshot after its commit
    return LocalFiles(folder, list_folder(folder), revision=folder.name, hint=hint)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
