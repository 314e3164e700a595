"""How a folder that a model's authors publish, in a layout of their own, reads as a Diffusers-style repo: data only."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class OfficialComponent:
    """One component: what `model_index.json` would say of it, and which files of the folder it is in."""

    name: str
    library: str
    class_name: str
    folder: str = ""
    """Where its files are, relative to the repo."""
    config: str | None = None
    """Its config file; None when it has none."""
    weights: str | None = None
    """Its weight file, or what it would be called if it were not split; None when it has no weights. With `*`, the one
    file of the folder that is called so."""
    prefixes: tuple[str, ...] = ()
    """What the names of its weights may begin with: of those that are there the first is taken, and what does not begin
    so is not its own."""
    values: tuple[tuple[str, Any], ...] = ()
    """Its config, where there is no file."""


@dataclass(frozen=True, kw_only=True)
class OfficialLayout:
    """A folder with a config of one of the `_class_name`s in `config_classes`, and no list of components."""

    config_classes: tuple[str, ...]
    pipeline_class: str
    components: tuple[OfficialComponent, ...]
    config_file: str = "config.json"
    """Where that config is, relative to the folder."""
    signature: tuple[tuple[str, Any], ...] = ()
    """Values in it that tell layouts of one class apart; the layout of which most agree is meant."""
    options: tuple[tuple[str, Any], ...] = ()
    """What `model_index.json` would say beside the components."""
    named: bool = False
    """Whether the config says the same as that of another layout: then the folder is of this one if its id is
    registered so, or if `model_index.json`, which may hold no more than `_class_name`, names the pipeline."""
