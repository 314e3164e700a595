"""The JSON side of a model repo: what `model_index.json` and the component configs say. Reads no weights."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastvideo.configs.official import OfficialComponent, OfficialLayout
from fastvideo.utils import read_json

CONFIG_FILES = ("config.json", "scheduler_config.json", "preprocessor_config.json")


@dataclass(frozen=True, kw_only=True)
class IndexedComponent:
    """One entry of `model_index.json` with its config."""

    name: str
    library: str
    class_name: str
    folder: str
    """Relative to the repo; empty when the files lie at its top."""
    config_file: str | None
    """Relative to the repo; None when there is no such file."""
    config: Mapping[str, Any]
    official: OfficialComponent | None = None
    """Where the weights are, in a folder of the authors' own layout."""


@dataclass(frozen=True, kw_only=True)
class RepoIndex:
    """A repo's class, components and options."""

    class_name: str
    components: Mapping[str, IndexedComponent]
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else `model_index.json` says, apart from what is null or false."""

    @property
    def configs(self) -> dict[str, Mapping[str, Any]]:
        """The config of each component, and under "model_index" the options."""
        return {"model_index": self.options, **{name: part.config for name, part in self.components.items()}}


def list_folder(folder: Path) -> frozenset[str]:
    """The files in `folder` and two levels below, relative to it, with forward slashes."""
    paths = (path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth) if path.is_file())
    return frozenset(path.relative_to(folder).as_posix() for path in paths)


def read_folder_index(folder: Path, layouts: Iterable[OfficialLayout]) -> RepoIndex:
    """The index of the repo in local `folder`; see `read_repo_index`."""
    return read_repo_index(str(folder), list_folder(folder), lambda name: folder / name, layouts)


def read_repo_index(
    repo: str,
    names: Collection[str],
    path_of: Callable[[str], Path],
    layouts: Iterable[OfficialLayout],
    pipeline_class: str | None = None,
) -> RepoIndex:
    """The index of a repo, of a Diffusers-style one or of one in a layout in `layouts`.

    Args:
        repo: what to call it in messages.
        names: all its files.
        path_of: gives the local path of one of them.
        layouts: of folders whose `model_index.json` lists no components, or that have none.
        pipeline_class: that of a registered id, where it is known.

    Raises:
        ValueError: neither `model_index.json` nor a known layout, or a JSON file that is broken.
    """
    options: dict[str, Any] = {}
    if "model_index.json" in names:
        index = _diffusers_index(repo, names, path_of)
        if index.components or all(layout.pipeline_class != index.class_name for layout in layouts):
            return index
        pipeline_class, options = index.class_name, dict(index.options)
    meant = [
        layout for layout in layouts
        if (not layout.named if pipeline_class is None else layout.pipeline_class == pipeline_class)
    ]  # fmt: skip
    layout = _layout_of(repo, names, path_of, meant)
    components = {part.name: _official_component(part, repo, names, path_of) for part in layout.components}
    return RepoIndex(class_name=layout.pipeline_class, components=components, options=dict(layout.options) | options)


def _layout_of(
    repo: str, names: Collection[str], path_of: Callable[[str], Path], layouts: list[OfficialLayout]
) -> OfficialLayout:
    """The layout of a repo without a list of components: its config is there, of the right class, and agrees with the
    signature."""
    there = {name: read_json(path_of(name)) for name in {layout.config_file for layout in layouts} if name in names}
    if not there:
        raise ValueError(
            f"{repo}: has no model_index.json, so it is no Diffusers-style repo, and no config.json of a known "
            "official layout; give the folder that holds one of them"
        )
    classed = [
        layout for layout in layouts
        if layout.config_file in there and there[layout.config_file].get("_class_name") in layout.config_classes
    ]  # fmt: skip
    if not classed:
        found = next(iter(there.values())).get("_class_name")
        known = ", ".join(sorted({name for layout in layouts for name in layout.config_classes}))
        raise ValueError(
            f"{repo}: has no model_index.json, and config.json is of _class_name={found!r}; official "
            f"layouts are known for {known}; give a Diffusers-style repo"
        )
    agreeing = [
        layout for layout in classed
        if all(there[layout.config_file].get(key) == value for key, value in layout.signature)
    ]  # fmt: skip
    if not agreeing:
        keys = {key: there[layout.config_file].get(key) for layout in classed for key, _ in layout.signature}
        raise ValueError(f"{repo}: no official layout is known for {keys}; give a Diffusers-style repo")
    return max(agreeing, key=lambda layout: len(layout.signature))


def _diffusers_index(repo: str, names: Collection[str], path_of: Callable[[str], Path]) -> RepoIndex:
    path = path_of("model_index.json")
    raw = read_json(path)
    class_name = raw.get("_class_name")
    if not isinstance(class_name, str) or not class_name:
        raise ValueError(f"{path}: _class_name={class_name!r}: must name the pipeline; download the file again")
    components: dict[str, IndexedComponent] = {}
    options: dict[str, Any] = {}
    for name, value in raw.items():
        if name.startswith("_") or value in (None, False, [None, None]):
            continue
        if not isinstance(value, list):
            options[name] = value
            continue
        if len(value) != 2 or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{path}: {name}={value!r}: must be [library, class]; download the file again")
        folder = [file for file in CONFIG_FILES if f"{name}/{file}" in names]
        config_file = f"{name}/{folder[0]}" if folder else None
        config = read_json(path_of(config_file)) if config_file else {}
        components[name] = IndexedComponent(
            name=name, library=value[0], class_name=value[1], folder=name, config_file=config_file, config=config
        )
    return RepoIndex(class_name=class_name, components=components, options=options)


def _official_component(
    part: OfficialComponent, repo: str, names: Collection[str], path_of: Callable[[str], Path]
) -> IndexedComponent:
    if part.config is not None and part.config not in names:
        raise ValueError(f"{repo}: {part.config} is missing; download the repo again")
    return IndexedComponent(
        name=part.name,
        library=part.library,
        class_name=part.class_name,
        folder=part.folder,
        config_file=part.config,
        config=read_json(path_of(part.config)) if part.config else dict(part.values),
        official=part,
    )
