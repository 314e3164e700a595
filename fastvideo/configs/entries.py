"""What the registry holds: an entry for each model, and one for each class with weights. Strings only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model: how to recognise it, and the names of what makes it run."""

    name: str
    description: str
    pipeline_class: str
    """`_class_name` in `model_index.json`."""
    pipeline: str
    """The pipeline, as "module:Class"."""
    pipeline_config: str
    """Its `PipelineConfig`, as "module:Class"."""
    sampling: str
    """Its `SamplingParam`, as "module:Class"."""
    model_ids: tuple[str, ...] = ()
    """What users call it: ids on the Hub, or the name of the model in the package."""
    signature: tuple[tuple[str, Any], ...] = ()
    """What the configs of a local folder of this model say, as ("component.key", value); the options of its index are
    under "model_index"."""
    components: tuple[str, ...] = ()
    """Components that other models of the class lack. An entry with neither is the default for its class."""
    classes: tuple[tuple[str, str, str], ...] = ()
    """Components that are run by another class of the same weights than their repos may name: the component's name,
    the class there, and the one that runs it."""
    streams: bool = False
    """Whether it makes a video chunk by chunk, so that frames are there before the next ones are computed."""
    cache_coefficients: str | None = None
    """What is published of this model for the step caches that use numbers of it, by their names, as "module:NAME"."""
    official_layout: str | None = None
    """The layout of the folders that the authors publish, as "module:NAME"."""

    def class_of(self, component: str, named: str) -> str:
        """The class that runs `component`, for which the index names the class `named`."""
        return {(name, theirs): ours for name, theirs, ours in self.classes}.get((component, named), named)

    def matches(self, configs: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the component configs `configs` agree with the signature, and all of `components` are there."""
        split = ((*key.split(".", 1), value) for key, value in self.signature)
        there = all(name in configs for name in self.components)
        return there and all(configs.get(component, {}).get(key) == value for component, key, value in split)


@dataclass(frozen=True, kw_only=True)
class ComponentEntry:
    """A component class with weights: its name in `model_index.json`, our model and its arch config."""

    class_name: str
    model: str
    arch: str
    reference: str | None = None
    """The reference's class that the same weights fit, where it has none of this name."""
