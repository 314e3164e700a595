"""Weights of a component in a GGUF file, in place of those of its repo: under which names, and of which sizes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from fastvideo.configs.models.base import ArchConfig, ParamNamesMapping
from fastvideo.models.loader.files import LocalFiles
from fastvideo.models.loader.gguf_file import SUFFIX, read_gguf
from fastvideo.models.loader.repo import ComponentSource, Repo
from fastvideo.utils import require


def with_weights(repo: Repo, paths: Mapping[str, str]) -> Repo:
    """`repo` with the weights of some components in other files.

    Args:
        repo: a resolved repo.
        paths: a GGUF file for each component, by its name; what option it is of follows from that.

    Raises:
        ValueError: the model has no such component, or there is no such file.
    """
    components = dict(repo.components)
    for name, given in paths.items():
        option, path = f"{name}_path", Path(given).expanduser()
        require(name in components, option, given, f"the model has no component {name!r}", "leave it out")
        require(path.suffix == SUFFIX, option, given, f"must be a {SUFFIX} file")
        require(path.is_file(), option, given, "there is no such file", "give the path of one on this machine")
        files = LocalFiles(path.parent, frozenset({path.name}), hint="download it again")
        components[name] = dataclasses.replace(components[name], files=files, weights=path.name, folder="", gguf=True)
    return dataclasses.replace(repo, components=components) if paths else repo


def names_of(source: ComponentSource, arch: ArchConfig) -> ParamNamesMapping:
    """The names of the weights of `source`.

    Raises:
        ValueError: as in `gguf_names`, or there is no format of the authors' own.
    """
    if source.gguf:
        return gguf_names(source, arch)
    mapping = arch.official_param_names_mapping if source.official else arch.param_names_mapping
    if mapping is None:
        raise ValueError(f"component {source.name!r}: {source.class_name} has no official format; use a "
                         "Diffusers-style repo")  # fmt: skip
    prefix = prefix_of(source)
    return mapping.behind(prefix) if prefix else mapping


def prefix_of(source: ComponentSource) -> str:
    """What the names of the weights of `source` begin with, of what its layout knows; empty where it knows none, or
    none of the names does."""
    names = source.header() if source.prefixes else ()
    return next((prefix for prefix in source.prefixes if any(name.startswith(prefix) for name in names)), "")


def gguf_names(source: ComponentSource, arch: ArchConfig) -> ParamNamesMapping:
    """The names of the weights in the GGUF file of `source`.

    Raises:
        ValueError: the file is of another architecture than `arch`, or there are no such files of it.
    """
    (path,) = source.weight_files
    found, known = read_gguf(path).architecture, arch.gguf_architectures
    mapping = arch.gguf_param_names_mapping
    if mapping is None:
        raise ValueError(f"{path}: no GGUF files of a {source.class_name} are known; use the weights of its repo")
    if found is not None and found not in known:
        raise ValueError(f"{path}: general.architecture is {found!r}, must be {' or '.join(map(repr, known))} for "
                         f"component {source.name!r}; take a file of that model")  # fmt: skip
    return mapping


def official_shapes(source: ComponentSource, arch_class: type[ArchConfig]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of `source`, whose names are the authors' own, or which is in a GGUF file in place of
    one whose are: under the authors' names."""
    prefix = "" if source.gguf else prefix_of(source)
    header = source.header().items()
    shapes = {name.removeprefix(prefix): info.shape for name, info in header if name.startswith(prefix)}
    if not source.gguf:
        return shapes
    # the names of a family do not depend on the sizes that are wanted here
    example = arch_class()
    theirs, ours = example.official_param_names_mapping, gguf_names(source, example)
    assert theirs is not None
    found = {}
    for name, shape in shapes.items():
        target = ours(name)
        sources = () if target is None else theirs.sources(target.name)
        if target is not None and target.part < len(sources):
            found[sources[target.part]] = shape
    return found
