"""What every arch config shares: strict construction from a repo's JSON, and the weight-name map."""

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from fastvideo.utils import nearest, require

Config = TypeVar("Config", bound="ArchConfig")


@dataclass(frozen=True)
class Rename:
    """One rule: a checkpoint name `source` becomes our `target`.

    Each `*` in `source` matches one or more characters, dots only where it ends the pattern, and stands again, in
    order, in `target`. With `parts > 1` the tensor is piece `part` of `parts` equal pieces
    that our parameter holds stacked along dimension 0 (query, key and value in one matrix, say).
    """

    source: str
    target: str
    part: int = 0
    parts: int = 1

    def match(self, name: str) -> str | None:
        """Our name for checkpoint name `name`, or None when the rule is not about it."""
        return _substitute(self.source, self.target, name)

    def unmatch(self, name: str) -> str | None:
        """The checkpoint name for our `name`: the rule read backwards."""
        return _substitute(self.target, self.source, name)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    pieces = [re.escape(piece) for piece in pattern.split("*")]
    regex = "([^.]+)".join(pieces)
    if len(pieces) > 1 and not pieces[-1]:
        regex = regex.removesuffix("([^.]+)") + "(.+)"
    return re.compile(regex)


def _substitute(pattern: str, template: str, name: str) -> str | None:
    found = _compiled(pattern).fullmatch(name)
    if found is None:
        return None
    groups = iter(found.groups())
    return "".join(next(groups) if char == "*" else char for char in template)


@dataclass(frozen=True)
class Target:
    """Where a checkpoint tensor goes: our parameter, and which stacked piece of it."""

    name: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class ParamNamesMapping:
    """The translation of checkpoint names to ours, as data: the first rule that matches wins.

    A name that no rule matches keeps its name; a name that matches a pattern in `drop` is known and not loaded. Each
    group in `tied` names one tensor that a checkpoint may hold under any of the names, or under several: the first
    that is there is loaded.
    """

    rules: tuple[Rename, ...] = ()
    drop: tuple[str, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()
    prefix: str = ""
    """What does not begin with it is dropped."""

    def __call__(self, name: str) -> Target | None:
        """Our target for checkpoint name `name`; None when it is dropped."""
        if not name.startswith(self.prefix):
            return None
        if any(_substitute(pattern, pattern, name) is not None for pattern in self.drop):
            return None
        for rule in self.rules:
            target = rule.match(name)
            if target is not None:
                return Target(target, rule.part, rule.parts)
        return Target(name)

    def behind(self, prefix: str) -> "ParamNamesMapping":
        """The same of a checkpoint whose names begin with `prefix`; what else it holds is dropped."""
        rules = tuple(replace(rule, source=prefix + rule.source) for rule in self.rules)
        tied = tuple(tuple(prefix + name for name in group) for group in self.tied)
        drop = tuple(prefix + name for name in self.drop)
        return ParamNamesMapping((*rules, Rename(f"{prefix}*", "*")), drop, tied, prefix)

    def repeated(self, names: Collection[str]) -> frozenset[str]:
        """Those of a checkpoint's `names` that hold once more what an earlier name of their `tied` group holds."""
        return frozenset(name for group in self.tied for name in [given for given in group if given in names][1:])

    def sources(self, name: str) -> tuple[str, ...]:
        """The checkpoint names, in order, that our parameter `name` is made of (the map read backwards)."""
        found: dict[int, str] = {}
        parts = 0
        for rule in self.rules:
            source = rule.unmatch(name)
            if source is not None and parts in (0, rule.parts):
                parts = rule.parts
                found.setdefault(rule.part, source)
        return tuple(found[part] for part in sorted(found)) or (name,)


def stacked(sources: Iterable[str], target: str) -> tuple[Rename, ...]:
    """Rules that stack `sources` in order along dimension 0 of `target`."""
    names = tuple(sources)
    return tuple(Rename(name, target, part, len(names)) for part, name in enumerate(names))


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """The sizes of a diffusion transformer that say what it costs to run, alone or over several devices."""

    layers: int
    heads: int
    """Of the full-sequence attention."""
    hidden: int
    """Width of a token."""
    channels: int
    """Of the predicted latents."""
    patch_size: tuple[int, int, int]
    """Latents in time, height and width that make a token."""

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """Of latents of `grid` frames, height and width."""
        return math.prod(-(-extent // patch) for extent, patch in zip(grid, self.patch_size, strict=True))


@dataclass(frozen=True, kw_only=True)
class ArchConfig:
    """Base of the arch configs: what a component's `config.json` says about its architecture, and no more."""

    keep_fp32: ClassVar[tuple[str, ...]] = ()
    """Parameters whose names contain one of these stay in fp32 whatever the precision."""
    keep_unquantized: ClassVar[tuple[str, ...]] = ()
    """Linear layers the names of whose weights contain one of these keep them whole when the others are quantized."""
    gguf_architectures: ClassVar[tuple[str, ...]] = ()
    """What `general.architecture` is in GGUF files of the model."""
    ignored_keys: ClassVar[tuple[str, ...]] = ()
    """JSON keys that are known and say nothing about the architecture."""

    @classmethod
    def from_dict(cls: type[Config], raw: Mapping[str, Any]) -> Config:
        """The config that `raw`, a parsed `config.json`, describes.

        Raises:
            ValueError: a key that is neither a field nor named in `ignored_keys`, or a value of another type.
        """
        hints = get_type_hints(cls)
        fields = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, Any] = {}
        for key, value in raw.items():
            if key in fields:
                values[key] = tuple(value) if isinstance(value, list) else value
                require(_fits(values[key], hints[key]), f"config key {key!r}", value, f"must be {_words(hints[key])}")
            elif not key.startswith("_") and key not in cls.ignored_keys:
                close = nearest(key, fields)
                raise ValueError(
                    f"config key {key!r}={value!r}: {cls.__name__} does not know it; "
                    + (f"did you mean {close!r}? " if close else "")
                    + f"known are {', '.join(sorted(fields))}"
                )
        return cls(**values)

    @classmethod
    def from_official(cls: type[Config], raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Config:
        """The config of a checkpoint in the authors' own format.

        Args:
            raw: its `config.json`, parsed; empty when it comes without one.
            shapes: of its tensors, under their names there.

        Raises:
            ValueError: there is no such format, or it is not one that this class describes.
        """
        raise ValueError(f"{cls.__name__}: has no format but the Diffusers one; use a Diffusers-style repo")

    def with_weights(self: Config, names: Collection[str]) -> Config:
        """This config, and what nothing but the `names` of a Diffusers repo's weights says about the architecture."""
        return self

    @property
    def head_dim(self) -> int | None:
        """Size of an attention head; None when the model has none of the attention layers that take a backend."""
        return None

    @property
    def transformer_shape(self) -> TransformerShape | None:
        """The sizes of a diffusion transformer; None for what is none."""
        return None

    @property
    def latent_scale(self) -> tuple[int, int] | None:
        """Frames and pixels a side that a latent stands for, of a VAE; None for what is none."""
        return None

    @property
    def face_side(self) -> int | None:
        """Pixels a side of a face as a diffusion transformer looks at it; None for one that looks at none."""
        return None

    @property
    def tensor_parallel_widths(self) -> Mapping[str, int]:
        """What the tensor-parallel degree must divide, by name; empty when the model is whole on every rank."""
        return {}

    @property
    def param_names_mapping(self) -> ParamNamesMapping:
        """Names in a Diffusers or Transformers repo."""
        return ParamNamesMapping()

    @property
    def official_param_names_mapping(self) -> ParamNamesMapping | None:
        """Names in the authors' own checkpoints; None when there is no such format."""
        return None

    @property
    def gguf_param_names_mapping(self) -> ParamNamesMapping | None:
        """Names in GGUF files; None when there are none of the model."""
        return None


def _fits(value: object, hint: Any) -> bool:
    """Whether `value` is of type `hint`: a class, a union, a tuple or a sequence of them, or a mapping with keys and
    values of them. A whole number is a float."""
    args = get_args(hint)
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple and args[-1] is not Ellipsis:
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if origin is Mapping:
        items = value.items() if isinstance(value, dict) else ((None, None),)
        return all(_fits(key, args[0]) and _fits(item, args[1]) for key, item in items)
    if origin is not None:
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _words(hint: Any) -> str:
    """`hint` as one writes it."""
    plain = isinstance(hint, type) and get_origin(hint) is None
    return hint.__name__ if plain else str(hint).replace("collections.abc.", "")


def shape_of(shapes: Mapping[str, tuple[int, ...]], name: str, dims: int) -> tuple[int, ...]:
    """The shape of tensor `name`, which decides the sizes of an official checkpoint.

    Raises:
        ValueError: it is missing, or has not `dims` dimensions.
    """
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"{name}: missing from the checkpoint; download it again")
    if len(shape) != dims:
        raise ValueError(f"{name}: shape {list(shape)} must have {dims} dimensions; download the checkpoint again")
    return shape
