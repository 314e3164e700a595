"""A model repo, resolved: its registry entry, and for each component the class, the config and the files."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from fastvideo.configs.registry import (
    SHIPPED_MODEL,
    SHIPPED_NAME,
    ModelEntry,
    entry_of_index,
    find_entry,
    local_folder,
    official_layouts,
)
from fastvideo.configs.repo_index import IndexedComponent, RepoIndex, read_repo_index
from fastvideo.models.loader.checkpoint import PICKLED, TensorInfo, merge_headers
from fastvideo.models.loader.files import LocalFiles, RepoFiles, hub_files
from fastvideo.utils import read_json, require

WEIGHT_NAMES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
"""What the weights of a component may be called; `<name>.index.json` beside it lists the pieces of a split file."""


@dataclass(frozen=True, kw_only=True)
class ComponentSource:
    """One component of a repo."""

    name: str
    library: str
    class_name: str
    config: Mapping[str, Any]
    config_name: str | None
    """Of its config file, relative to the repo; None when it has none."""
    folder: str
    """Relative to the repo; empty when the files lie at its top."""
    official: bool
    """Whether names and config are the authors' own, not those of Diffusers and Transformers."""
    weights: str | None
    """Of its weight file as it would be called were it not split, where the layout fixes it; a pattern where it has a
    `*`."""
    prefixes: tuple[str, ...] = ()
    """See `OfficialComponent`."""
    files: RepoFiles
    """What holds its weights, and where that is the repo its config."""
    gguf: bool = False
    """Whether its weights are in a GGUF file, `weights`, in place of those of the repo."""

    @property
    def has_weights(self) -> bool:
        """Whether it is a model, and no scheduler, tokenizer or image processor."""
        return not self.name.startswith(("scheduler", "tokenizer", "image_processor"))

    @property
    def config_file(self) -> Path | None:
        """Its config file on this machine."""
        return None if self.config_name is None else self.files.fetch((self.config_name,)) / self.config_name

    def weight_names(self) -> tuple[str, ...]:
        """Its weight files, relative to the repo.

        Raises:
            ValueError: there are none, or the list of the pieces is broken.
        """
        prefix = f"{self.folder}/" if self.folder else ""
        candidates = (self.weights,) if self.weights else tuple(prefix + name for name in WEIGHT_NAMES)
        if self.weights is not None and "*" in self.weights:
            candidates = self._called(self.weights) or candidates
        for name in candidates:
            if f"{name}.index.json" in self.files.names:
                return self._pieces(f"{name}.index.json")
            if name in self.files.names:
                return (name,)
        there = [PurePosixPath(name).name for name in sorted(self.files.names) if name.startswith(prefix)]
        raise ValueError(
            f"component {self.name!r}: no weights; expected {candidates[0]} or its pieces, and there is "
            f"{', '.join(there) or 'nothing'}; download the repo again"
        )

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Its weight files on this machine; fetched now when they are not there yet.

        Raises:
            ValueError: there are none, or one is missing.
        """
        names = self.weight_names()
        folder = self.files.fetch(names)
        return tuple(folder / name for name in names)

    def header(self) -> dict[str, TensorInfo]:
        """Its tensors by name, from the headers of its weight files, without fetching their data.

        Raises:
            ValueError: a file is missing, truncated or no weight file, or two hold a tensor of one name.
        """
        return merge_headers(self.files.header(name) for name in self.weight_names())

    def local_folder(self) -> Path:
        """Its folder on this machine, with all its files in it.

        Raises:
            ValueError: the repo has no such folder.
        """
        names = [name for name in self.files.names if name.startswith(f"{self.folder}/")]
        require(bool(names), f"component {self.name!r}", self.folder, "has no files", "download the repo again")
        return self.files.fetch(names) / self.folder

    def _called(self, pattern: str) -> tuple[str, ...]:
        """The one weight file that `pattern` fits, if there is one."""
        fitting = [
            name for name in sorted(self.files.names)
            if fnmatchcase(name, pattern) and name.endswith((*PICKLED, ".safetensors"))
        ]  # fmt: skip
        if len(fitting) > 1:
            raise ValueError(
                f"component {self.name!r}: {' and '.join(fitting)} may be its weights ({pattern}); keep one of them "
                "there"
            )
        return tuple(fitting)

    def _pieces(self, index: str) -> tuple[str, ...]:
        path = self.files.fetch((index,)) / index
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{path}: weight_map must name a file for each weight; download the file again")
        parent = PurePosixPath(index).parent
        pieces = tuple(dict.fromkeys(str(parent / name) for name in weight_map.values()))
        for name in pieces:
            if name not in self.files.names:
                raise ValueError(f"{name}: weight file is missing, {index} lists it; download the repo again")
        return pieces


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A model repo."""

    model: str
    """As the user named it."""
    entry: ModelEntry
    model_index: Mapping[str, Any]
    """`_class_name`, and what else the index says beside components; nothing that is null or false."""
    components: Mapping[str, ComponentSource]
    files: RepoFiles

    @property
    def revision(self) -> str | None:
        """The commit of a Hub repo; None for a folder."""
        return self.files.revision


def resolve_repo(model: str | Path, revision: str | None = None) -> Repo:
    """The repo that `model` names: a local folder, the model in the package, or a registered Hub id.

    Reads JSON alone; weights are fetched when `ComponentSource.weight_files` is asked for.

    Raises:
        ValueError: no such model, no or a broken `model_index.json`, or a pipeline class that nobody registered.
    """
    folder = local_folder(model)
    name = str(model)
    entry = None
    if folder is None:
        entry = find_entry(model_id=name)
    if entry is not None and entry.name == SHIPPED_NAME:
        folder = SHIPPED_MODEL
        require(folder.is_dir(), "model", name, "is missing from this installation", "install the package again")
    if folder is not None:
        require(revision is None, "revision", revision, f"is of Hub repos; {name} is a local folder", "leave it out")
        return _resolve(name, LocalFiles.of(folder), entry)
    return _resolve(name, hub_files(name, revision), entry)


def _resolve(model: str, files: RepoFiles, entry: ModelEntry | None) -> Repo:
    index = read_repo_index(
        model, files.names, lambda name: files.fetch((name,)) / name, official_layouts(),
        pipeline_class=entry.pipeline_class if entry else None,
    )  # fmt: skip
    entry = entry or entry_of_index(index)
    if index.class_name != entry.pipeline_class:
        raise ValueError(
            f"model={model!r}: _class_name={index.class_name!r} in its model_index.json, must be "
            f"{entry.pipeline_class!r}; download the repo again"
        )
    return Repo(
        model=model,
        entry=entry,
        model_index={"_class_name": index.class_name, **index.options},
        components=_sources(index, entry, files),
        files=files,
    )


def _sources(index: RepoIndex, entry: ModelEntry, files: RepoFiles) -> dict[str, ComponentSource]:
    return {name: _source(component, entry, files) for name, component in index.components.items()}


def _source(component: IndexedComponent, entry: ModelEntry, files: RepoFiles) -> ComponentSource:
    return ComponentSource(
        name=component.name,
        library=component.library,
        class_name=entry.class_of(component.name, component.class_name),
        config=component.config,
        config_name=component.config_file,
        folder=component.folder,
        official=component.official is not None,
        weights=component.official.weights if component.official else None,
        prefixes=component.official.prefixes if component.official else (),
        files=files,
    )


def weight_sources(repo: Repo) -> list[ComponentSource]:
    """The components of `repo` that have weights."""
    return [source for source in repo.components.values() if source.has_weights]
