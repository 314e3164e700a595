"""Which weights a LoRA changes: its keys, in any of the spellings in use, against the names and shapes of a model.

Spellings are those of `peft` (`lora_A`, `lora_B`), of `diffusers` (the same after `transformer.`), of kohya's trainers
(`lora_unet_` and underscores, `lora_down`, `lora_up`, `alpha`), and of files for ComfyUI (`diffusion_model.`, `diff`,
`diff_b`). Reads headers, and of tensors the `alpha`s alone.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from fastvideo.configs.models.base import ParamNamesMapping, Target
from fastvideo.models.loader.checkpoint import TensorInfo, stream_tensors
from fastvideo.models.loader.component_loader import Blueprint, blueprint
from fastvideo.models.loader.lora_files import LoraFile, alpha_of, component_of, find_lora
from fastvideo.models.loader.repo import Repo
from fastvideo.models.loader.weights import file_hashes

KINDS = {
    "down": r"\.(?:lora_A|lora_down|lora\.down)(?:\.(?!weight$)[^.]+)?\.weight",
    "up": r"\.(?:lora_B|lora_up|lora\.up)(?:\.(?!weight$)[^.]+)?\.weight",
    "up_bias": r"\.(?:lora_B|lora_up|lora\.up)(?:\.(?!bias$)[^.]+)?\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
}
"""How the key of each kind of tensor ends; before it is the layer."""
OTHERS = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "Tucker LoRA",
    "oft_": "OFT",
}  # fmt: skip
"""What the keys of other kinds of adapters have in them."""
PREFIXES = ("base_model.model.", "base_model.", "model.", "pipe.", "dit.", "diffusion_model.", "transformer.")
"""What may stand before the name of a layer, one or several of them."""
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
"""The same where the name has underscores for its dots."""


@dataclass(frozen=True)
class Change:
    """One thing that a LoRA does to one parameter, or to one of the matrices stacked in it.

    It is `scale * up @ down`, or `scale * full`; all three are keys of `file`.
    """

    target: Target
    file: LoraFile
    scale: float
    up: str | None = None
    down: str | None = None
    full: str | None = None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA whose keys were compared with a model."""

    nickname: str
    path: str
    """As the user named it."""
    files: tuple[LoraFile, ...]
    hashes: Mapping[str, str]
    """The SHA-256 of each file, by its name."""
    changes: Mapping[str, tuple[Change, ...]]
    """By component."""
    applied: int
    """How many keys are of weights of the model."""
    not_applied: Mapping[str, str] = field(default_factory=dict)
    """The other keys, and why each is none."""

    def __str__(self) -> str:
        """One line a key that is not applied, after one that says how many are."""
        total = self.applied + len(self.not_applied)
        where = ", ".join(name for name, changes in self.changes.items() if changes)
        lines = [f"LoRA {self.nickname!r} of {self.path}: {self.applied} of {total} keys applied, to {where}"]
        return "\n".join([*lines, *(f"  not applied: {key} ({why})" for key, why in self.not_applied.items())])


@dataclass(frozen=True)
class LoraSet:
    """The adapters that a pipeline runs with, each with its strength, and whether they are merged into the weights."""

    adapters: tuple[tuple[Adapter, float], ...] = ()
    merged: bool = False


def transformers_of(repo: Repo) -> dict[str, Blueprint]:
    """The blueprints of the components of `repo` that an adapter can change; reads no weight."""
    return {name: blueprint(source) for name, source in repo.components.items() if name.startswith("transformer")}


def load_adapter(nickname: str, path: str, models: Mapping[str, Blueprint]) -> Adapter:
    """The LoRA at `path` for a model's transformers, `models`.

    Raises:
        ValueError: there is no such file, or it is no LoRA, or one for another model.
    """
    files = find_lora(path, len(models))
    changes: dict[str, list[Change]] = {name: [] for name in models}
    applied: set[tuple[str, str]] = set()
    refused: dict[str, str] = {}
    for file in files:
        reader = _Reader(path, file)
        for name in component_of(file.mark, tuple(models)):
            found, used, left = reader.changes(name, models[name])
            changes[name] += found
            applied |= {(file.name, key) for key in used}
            refused |= {key if len(files) == 1 else f"{file.name}: {key}": why for key, why in left.items()}
    used_names = {key if len(files) == 1 else f"{file}: {key}" for file, key in applied}
    not_applied = {key: why for key, why in refused.items() if key not in used_names}
    if not applied:
        key, why = next(iter(not_applied.items()), ("", "it is empty"))
        raise ValueError(
            f"lora_path={path!r}: none of its {len(not_applied)} keys is of a weight of the model"
            + (f" (the first, {key!r}: {why})" if key else f" ({why})")
            + "; use a LoRA that was made for this model"
        )
    return Adapter(
        nickname=nickname,
        path=path,
        files=files,
        hashes=file_hashes({file.name: file.path for file in files}),
        changes={name: tuple(found) for name, found in changes.items()},
        applied=len(applied),
        not_applied=not_applied,
    )


class _Names:
    """The layers of a model under every name that files give them."""

    def __init__(self, model: Blueprint, layers: Iterable[str]) -> None:
        """Should two formats mean different things by one name, that which knows more of `layers` is right."""
        self.shapes = {name: tuple(value.shape) for name, value in model.model.state_dict(keep_vars=True).items()}
        maps = [model.arch.param_names_mapping, model.arch.official_param_names_mapping]
        tables = [self._table(mapping) for mapping in maps if mapping is not None]
        given = list(layers)
        known = [sum(_find(name, table, flat) is not None for name in given) for table in tables
                 for flat in [_flat(table)]]  # fmt: skip
        # what comes last beats what was before
        tables = [tables[index] for index in sorted(range(len(tables)), key=known.__getitem__)]
        self.targets = {name: target for table in tables for name, target in table.items()}
        self._flat = _flat(self.targets)

    def _table(self, mapping: ParamNamesMapping) -> dict[str, Target]:
        table = {}
        for name in self.shapes:
            sources = mapping.sources(name)
            table.update({source: Target(name, part, len(sources)) for part, source in enumerate(sources)})
        return table

    def layer(self, name: str) -> str | None:
        """The layer that a key calls `name`, without what its format puts before that; None when there is none."""
        return _find(name, self.targets, self._flat)

    def weight(self, layer: str) -> Target | None:
        """Where the weight of `layer` is, or that parameter itself."""
        return self.targets.get(f"{layer}.weight") or self.targets.get(layer)

    def bias(self, layer: str) -> Target | None:
        """Where its bias is."""
        return self.targets.get(f"{layer}.bias")

    def shape(self, target: Target) -> tuple[int, ...]:
        """Of the whole of `target`."""
        first, *rest = self.shapes[target.name] or (1,)
        return (first // target.parts, *rest)


def _flat(targets: Iterable[str]) -> dict[str, str]:
    """The layers of the parameters `targets`, by their names with underscores for dots."""
    layers = {re.sub(r"\.(weight|bias)$", "", name) for name in targets}
    return {layer.replace(".", "_"): layer for layer in layers}


def _find(name: str, targets: Collection[str], flat: Mapping[str, str]) -> str | None:
    """The layer that a key calls `name`; see `_Names.layer`."""
    for prefix in FLAT_PREFIXES:
        if name.startswith(prefix):
            return flat.get(name.removeprefix(prefix).replace(".", "_"))
    if any(candidate in targets for candidate in (f"{name}.weight", f"{name}.bias", name)):
        return name
    shorter = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), None)
    return None if shorter is None else _find(shorter, targets, flat)


class _Reader:
    """The keys of one file."""

    def __init__(self, path: str, file: LoraFile) -> None:
        self.path, self.file = path, file
        self.header = file.header()
        self.settings = file.settings()
        self.keys: dict[str, tuple[str | None, str, str]] = {}
        """Of each key of a known kind: the component that it names, the layer, the kind."""
        self._read_keys()
        alphas = [key for key, (_, _, kind) in self.keys.items() if kind == "alpha"]
        self.alphas = {key: float(value) for key, value in stream_tensors([file.path], alphas) if value.numel() == 1}

    def _read_keys(self) -> None:
        numbered = re.compile(r"((?:base_model\.model\.)?)(transformer_\d+)\.(.*)")
        has_numbered = any(map(numbered.fullmatch, self.header))
        for key, info in self.header.items():
            other = next((kind for word, kind in OTHERS.items() if word in key), None)
            if other is not None or self.settings.get("use_dora"):
                raise self._error(f"{key!r} is of {other or 'DoRA'}, and low-rank pairs and differences alone can be "
                                  "applied", "merge it into the weights beforehand")  # fmt: skip
            if not info.dtype.is_floating_point and not key.endswith(".alpha"):
                raise self._error(f"{key!r} is {info.dtype}, must be a floating-point type",
                                  "use a LoRA that is not quantized")  # fmt: skip
            kind, layer = next(((kind, found[1]) for kind, end in KINDS.items()
                                if (found := re.fullmatch(f"(.+){end}", key))), (None, ""))  # fmt: skip
            if kind is None:
                continue
            component = None
            if found := numbered.fullmatch(layer):
                component, layer = found[2], found[1] + found[3]
            elif has_numbered and layer.removeprefix("base_model.model.").startswith("transformer."):
                component = "transformer"
            self.keys[key] = (component, layer, kind)

    def changes(self, component: str, model: Blueprint) -> tuple[list[Change], list[str], dict[str, str]]:
        """What the file does to `component`; which keys say that, and why the others do not."""
        mine = {key: (layer, kind) for key, (named, layer, kind) in self.keys.items() if named in (None, component)}
        names = _Names(model, {layer for layer, _ in mine.values()})
        left = {key: "it is of another component" if key in self.keys else "it is no part of a LoRA"
                for key in self.header if key not in mine}  # fmt: skip
        layers: dict[str, dict[str, str]] = {}
        for key, (given, kind) in mine.items():
            layer = names.layer(given)
            if layer is None:
                left[key] = f"the model has no {given!r}"
                continue
            kinds = layers.setdefault(layer, {})
            if kind in kinds:
                raise self._error(f"{kinds[kind]!r} and {key!r} are both of {layer!r}", "remove one of them")
            kinds[kind] = key
        changes: list[Change] = []
        for layer, kinds in layers.items():
            changes += self._of_layer(layer, kinds, names, left)
        used = [key for kinds in layers.values() for key in kinds.values() if key not in left]
        return changes, used, left

    def _of_layer(self, layer: str, kinds: dict[str, str], names: _Names, left: dict[str, str]) -> list[Change]:
        """What the keys of one layer do; adds to `left` those that do nothing."""
        weight, bias = names.weight(layer), names.bias(layer)
        changes, scale = [], 1.0
        if ("down" in kinds) != ("up" in kinds):
            key = kinds.get("down") or kinds["up"]
            raise self._error(f"{key!r} lacks the other half of its pair", "download it again")
        if "down" in kinds and weight is not None:
            rank = self._check_pair(kinds["up"], kinds["down"], names.shape(weight))
            scale = self._scale(layer, kinds, rank)
            changes.append(Change(weight, self.file, scale, up=kinds["up"], down=kinds["down"]))
        elif "alpha" in kinds:
            left[kinds["alpha"]] = "there is no pair that it belongs to"
        for kind, target, factor in (("diff", weight, 1.0), ("diff_b", bias, 1.0), ("up_bias", bias, scale)):
            key = kinds.get(kind, "")
            if key and target is None:
                left[key] = f"the model's {layer!r} has no {'weight' if kind == 'diff' else 'bias'}"
            elif key and target is not None:
                self._check_shape(key, names.shape(target))
                changes.append(Change(target, self.file, factor, full=key))
        if weight is None:
            left.update(
                {kinds[kind]: f"the model's {layer!r} has no weight" for kind in ("up", "down") if kind in kinds}
            )
        return changes

    def _scale(self, layer: str, kinds: dict[str, str], rank: int) -> float:
        """What the product of a pair is multiplied with."""
        if "alpha" in kinds:
            key = kinds["alpha"]
            if key not in self.alphas:
                raise self._error(f"{key!r} has shape {list(self.header[key].shape)}, must be one number",
                                  "download it again")  # fmt: skip
            return self.alphas[key] / rank
        alpha = alpha_of(self.settings, layer)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def _check_pair(self, up: str, down: str, shape: tuple[int, ...]) -> int:
        """The rank of a pair, whose product must have as many rows, and numbers in a row, as a weight of `shape`."""
        above, below = self.header[up].shape, self.header[down].shape
        rank = below[0] if below else 0
        fits = (
            len(above) >= 2 and len(below) >= 2 and len(shape) >= 2 and rank > 0
            and above[:2] == (shape[0], rank) and math.prod(above[2:]) == 1
            and math.prod(below[1:]) == math.prod(shape[1:])
        )  # fmt: skip
        if not fits:
            raise self._other_model(f"{up!r} and {down!r} have shapes {list(above)} and {list(below)}", shape)
        return rank

    def _check_shape(self, key: str, shape: tuple[int, ...]) -> None:
        info: TensorInfo = self.header[key]
        if info.shape != shape:
            raise self._other_model(f"{key!r} has shape {list(info.shape)}", shape)

    def _other_model(self, what: str, shape: tuple[int, ...]) -> ValueError:
        return self._error(f"{what}, and the model's weight is {list(shape)}: it is for another model",
                           "use a LoRA that was made for this one")  # fmt: skip

    def _error(self, rule: str, fix: str) -> ValueError:
        return ValueError(f"lora_path={self.path!r}: in {self.file.name}, {rule}; {fix}")
