"""What `quality` means for a model: what `fastvideo tune` measured and chose, and where that is kept."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fastvideo
from fastvideo import envs
from fastvideo.configs.registry import ModelEntry
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.speed import CACHES, OF_GUIDANCE, SPEED, given
from fastvideo.logger import init_logger
from fastvideo.utils import read_json, require, resolve

logger = init_logger(__name__)

FORMAT = 1
"""Of the files; another one is not read."""
SHIPPED = Path(fastvideo.__file__).parent / "assets" / "tuned"
"""What was measured for models in the package."""
MEASURED_AT = ("num_inference_steps", "guidance_scale", "height", "width", "num_frames")
"""What a measurement depends on beside the model."""

Tuned = dict[str, Any]
"""One file: see `fastvideo/entrypoints/tune/run.py`, which writes it."""


def file_of(weights: Mapping[str, str]) -> Path:
    """Where the measurements of a model are kept whose weight files have the hashes `weights`."""
    return envs.cache_root() / "tuned" / f"{key_of(weights)}.json"


def key_of(weights: Mapping[str, str]) -> str:
    """What tells a model from others, wherever its files lie."""
    return hashlib.sha256("\n".join(sorted(weights.values())).encode()).hexdigest()[:16]


def find_tuned(weights: Mapping[str, str]) -> Tuned | None:
    """What was measured for a model with these weights: by the user, else by us; None when nobody did.

    Raises:
        ValueError: the file is broken, or of another version.
    """
    own = file_of(weights)
    for path in (own, SHIPPED / own.name):
        if not path.exists():
            continue
        tuned = read_json(path)
        require(tuned.get("format") == FORMAT, "format", tuned.get("format"), f"{path} is of another version",
                "run fastvideo tune again")  # fmt: skip
        return tuned
    return None


def in_plain_fields(
    sampling: SamplingParam, model: str, entry: ModelEntry, look_up: Callable[[], Tuned | None]
) -> SamplingParam:
    """A copy of `sampling` in which the fields say all: what `quality` stands for, the model's own coefficients, and
    what the environment says of the gate. So a clip's file has all that made it.

    Args:
        sampling: checked.
        model: as the user named it.
        entry: its registration.
        look_up: `find_tuned` for its weights; called when it is needed.

    Raises:
        ValueError: `quality` needs a measurement that nobody made, or that holds another version's fields.
    """
    plain, guided = copy.copy(sampling), sampling.guidance_scale > 1
    tuned: Tuned | None = None
    quality, gate = sampling.quality, envs.cfg_gate_step()
    if quality != "exact":
        tuned = look_up()
        require(tuned is not None, "quality", quality, f"{model} was not measured yet", f"run fastvideo tune {model}")
        assert tuned is not None
        level = tuned["levels"].get(quality)
        require(level is not None, "quality", quality, "nothing that saves block runs keeps to its error budget on "
                f"{model}", "use quality='exact', or set cache and cache_threshold")  # fmt: skip
        require(gate in (None, 1) or not guided, "FASTVIDEO_CFG_GATE_STEP", gate, f"quality={quality!r} picks the gate",
                "unset it, or use quality='exact'")  # fmt: skip
        fields = {name: value for name, value in level["fields"].items() if guided or name not in OF_GUIDANCE}
        plain.update(quality="exact", **fields)
        _tell(quality, plain, tuned)
    if gate is not None and plain.cfg_gate_step is None and guided:
        plain.cfg_gate_step = gate
    if plain.cache != "none" and CACHES[plain.cache].coefficients and plain.cache_coefficients is None:
        tuned = tuned or look_up()
        measured = tuned["coefficients"].get(plain.cache) if tuned else None
        published = resolve(entry.cache_coefficients) if entry.cache_coefficients else {}
        numbers = measured or published.get(plain.cache)
        plain.cache_coefficients = tuple(numbers) if numbers else None
    plain.check()
    return plain


def _tell(quality: str, plain: SamplingParam, tuned: Tuned) -> None:
    chosen = ", ".join(f"{name}={getattr(plain, name)!r}" for name in given(plain, SPEED) if "coef" not in name)
    logger.info("quality=%r: %s", quality, chosen)
    for name in MEASURED_AT:
        then, now = tuned["request"][name], getattr(plain, name)
        if then != now:
            logger.warning("quality=%r was measured at %s=%s, and this is %s: the error may be another", quality, name,
                           then, now)  # fmt: skip
