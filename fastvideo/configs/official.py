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
    """Its weight file, or what it would be called if it were not split; None when it has no weights."""
    values: tuple[tuple[str, Any], ...] = ()
    """Its config, where there is no file."""


@dataclass(frozen=True, kw_only=True)
class OfficialLayout:
    """A folder with a config of `_class_name` `config_class` and no `model_index.json`."""

    config_class: str
    pipeline_class: str
    components: tuple[OfficialComponent, ...]
    config_file: str = "config.json"
    """Where that config is, relative to the folder."""
    signature: tuple[tuple[str, Any], ...] = ()
    """Values in it that tell layouts of one class apart; the layout of which most agree is meant."""
    options: tuple[tuple[str, Any], ...] = ()
    """What `model_index.json` would say beside the components."""
