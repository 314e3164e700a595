"""Options of the attention backends that leave keys out. Names are those that users of each method know."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastvideo.configs.base import require_number, require_whole
from fastvideo.utils import read_json, require, require_known

Sizes = tuple[int, int, int]
"""In time, height and width."""


@dataclass(frozen=True, kw_only=True)
class MoBAConfig:
    """How VMoBA (arXiv 2506.23858) cuts the tokens into chunks and chooses among them.

    Layers take turns: `temporal_layer` of them have chunks of whole frames, then `spatial_layer` have chunks of an area
    in all frames, then `st_layer` have chunks of an area in some frames.
    """

    temporal_chunk_size: int = 2
    """Frames of tokens of a chunk in time."""
    temporal_topk: int = 3
    """Chunks that a query sees of these, its own among them."""
    spatial_chunk_size: tuple[int, int] = (3, 4)
    """Height and width, in tokens, of a chunk in space."""
    spatial_topk: int = 20
    st_chunk_size: Sizes = (4, 6, 4)
    """Time, height and width, in tokens, of a chunk in both."""
    st_topk: int = 15
    moba_select_mode: str = "threshold"
    """threshold or topk; the topks serve the latter alone."""
    moba_threshold: float = 0.25
    """Share of the similarity that the chosen chunks have together."""
    moba_threshold_type: str = "query_head"
    """What competes: the chunks of each query and head (query_head), the queries and heads of each chunk (block), the
    chunks and queries of each head (head_global), or all of them (overall)."""
    first_full_layer: int = 0
    """Layers at the beginning that see all keys."""
    temporal_layer: int = 1
    spatial_layer: int = 1
    st_layer: int = 1

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "MoBAConfig":
        """The config that `raw` describes.

        Raises:
            ValueError: an unknown key, or a value that cannot be.
        """
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in raw.items()}
        # files in use have it; the method's other users see all keys in these steps
        steps = values.pop("first_full_step", 0)
        require(steps == 0, "moba_config first_full_step", steps, "all steps are alike in this version", "set it to 0")
        require_known(values, [item.name for item in dataclasses.fields(cls)], "key of moba_config")
        config = cls(**values)
        config.check()
        return config

    def check(self) -> None:
        """Check every field.

        Raises:
            ValueError: the field, its value and the rule.
        """
        for name in ("temporal_chunk_size", "temporal_topk", "spatial_topk", "st_topk"):
            require_whole(f"moba_config {name}", getattr(self, name), 1)
        for name in ("first_full_layer", "temporal_layer", "spatial_layer", "st_layer"):
            require_whole(f"moba_config {name}", getattr(self, name), 0)
        layers = self.temporal_layer + self.spatial_layer + self.st_layer
        require(layers > 0, "moba_config temporal_layer + spatial_layer + st_layer", layers, "must be at least 1")
        _require_sizes("moba_config spatial_chunk_size", self.spatial_chunk_size, 2)
        _require_sizes("moba_config st_chunk_size", self.st_chunk_size, 3)
        require_number("moba_config moba_threshold", self.moba_threshold, 0, 1)
        mode, kind = self.moba_select_mode, self.moba_threshold_type
        require(mode in ("threshold", "topk"), "moba_config moba_select_mode", mode, "must be 'threshold' or 'topk'")
        kinds = ("query_head", "block", "head_global", "overall")
        require(kind in kinds, "moba_config moba_threshold_type", kind, f"must be one of {', '.join(kinds)}")
        require(mode == "threshold" or kind != "block", "moba_config moba_threshold_type", kind,
                "has no topk", "set moba_select_mode to 'threshold', or choose query_head")  # fmt: skip

    def chunk_of(self, layer: int, grid: Sizes) -> tuple[Sizes, int] | None:
        """The chunk, in tokens of `grid`, and the topk of layer number `layer`; None where it sees all keys."""
        if layer < self.first_full_layer:
            return None
        turn = (layer - self.first_full_layer) % (self.temporal_layer + self.spatial_layer + self.st_layer)
        if turn < self.temporal_layer:
            return (self.temporal_chunk_size, grid[1], grid[2]), self.temporal_topk
        if turn < self.temporal_layer + self.spatial_layer:
            return (grid[0], *self.spatial_chunk_size), self.spatial_topk
        return self.st_chunk_size, self.st_topk


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """What the backends that leave keys out need to know; each reads what is about itself."""

    VSA_sparsity: float = 0.0
    """Share of the key blocks that video sparse attention leaves out."""
    STA_window: Sizes | None = None
    """Tiles that a query sees with sliding tile attention, in every layer and head."""
    STA_tile_size: Sizes = (6, 8, 8)
    """Tokens of a tile."""
    STA_windows: Mapping[tuple[int, int], Sizes] = field(default_factory=dict)
    """The same by layer and head, where they differ; in place of `STA_window`."""
    moba: MoBAConfig = MoBAConfig()


def require_window(name: str, value: object) -> None:
    """Raise a `ValueError` unless `value` is three whole numbers from 1."""
    _require_sizes(name, value, 3)


def read_mask_strategy(path: str | Path) -> dict[tuple[int, int], Sizes]:
    """The windows, in tiles, by layer and head, that JSON file `path` holds.

    Its keys are "layer_head", or "step_layer_head" as files of FastVideo and of the authors have them; its values are
    lists of three numbers.

    Raises:
        ValueError: the file cannot be read or has another form, or a window changes from step to step.
    """
    file, windows = Path(path).expanduser(), dict[tuple[int, int], Sizes]()
    for key, value in read_json(file).items():
        what = f"{file}: {key!r}"
        found = re.fullmatch(r"(?:\d+_)?(\d+)_(\d+)", key)
        if found is None:
            raise ValueError(f"{what}: must read 'layer_head' or 'step_layer_head', in numbers from 0")
        require_window(what, value)
        place, window = (int(found[1]), int(found[2])), (value[0], value[1], value[2])
        before = windows.setdefault(place, window)
        require(before == window, what, value, f"layer {place[0]}, head {place[1]} has {list(before)} at another step, "
                "and this version has one window for all steps", "give it one")  # fmt: skip
    require(bool(windows), "mask_strategy_file_path", str(path), "holds no window", "write one for each layer and head")
    return windows


def _require_sizes(name: str, value: object, count: int) -> None:
    several = isinstance(value, (tuple, list)) and len(value) == count
    require(several, name, value, f"must be {count} whole numbers, each at least 1")
    for item in value:  # type: ignore[attr-defined]
        require_whole(name, item, 1)
