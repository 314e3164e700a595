"""What `quality` means for a model: what `fastvideo tune` measured and chose, and where that is kept."""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastvideo
from fastvideo import envs
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import ModelEntry
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.speed import CACHES, OF_GUIDANCE, SPEED, given
from fastvideo.fastvideo_args import BACKEND_OF, FastVideoArgs
from fastvideo.logger import init_logger
from fastvideo.models.loader.repo import Repo
from fastvideo.models.loader.weights import weight_hashes
from fastvideo.platforms import Platform, current_platform
from fastvideo.utils import processor, read_json, require, resolve

logger = init_logger(__name__)

FORMAT = 2
"""Of the files that are written."""
READ = (1, FORMAT)
"""Formats that are read; the first knows nothing of precisions."""
SHIPPED = Path(fastvideo.__file__).parent / "assets" / "tuned"
"""What was measured for models in the package."""
MEASURED_AT = ("num_inference_steps", "guidance_scale", "height", "width", "num_frames")
"""What a measurement depends on beside the model."""

OF_LOADING = ("precision", "quantization", "attention_backend", *BACKEND_OF, "pipeline_config")
"""Options of the engine that a quality leaves alone when they are given."""

Tuned = dict[str, Any]
"""One file: see `fastvideo/entrypoints/tune/run.py`, which writes it."""


@dataclass(frozen=True)
class Loaded:
    """What a generator was loaded for."""

    quality: str = "exact"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the engine, those that the quality picked."""
    keeps: tuple[str, ...] = ()
    """The qualities whose fields were measured with these options too, and keep to their budgets."""


EXACT = Loaded()


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
        require(tuned.get("format") in READ, "format", tuned.get("format"), f"{path} is of another version",
                "run fastvideo tune again")  # fmt: skip
        return tuned
    return None


def level_of(tuned: Tuned | None, quality: str, model: str) -> Tuned:
    """What was chosen for `quality` on `model`.

    Raises:
        ValueError: nobody measured the model, or nothing keeps to the budget on it.
    """
    require(tuned is not None, "quality", quality, f"{model} was not measured yet", f"run fastvideo tune {model}")
    assert tuned is not None
    level: Tuned | None = tuned["levels"].get(quality)
    rule = f"nothing that saves block runs keeps to its error budget on {model}"
    require(level is not None, "quality", quality, rule, "use quality='exact', or set cache and cache_threshold")
    assert level is not None
    return level


def machine_of(platform: Platform) -> str:
    """What a measurement of speed was made on."""
    return ", ".join((platform.name(), *(processor()[1] if platform.device_type == "cpu" else ())))


def loaded_for(
    repo: Repo, args: FastVideoArgs, config: PipelineConfig, explicit: Collection[str]
) -> tuple[FastVideoArgs, PipelineConfig, Loaded]:
    """`args` and `config` with the precision, the quantization and the attention that were measured to be the quickest
    for `args.quality`, in its error budget; as they are, saying why, where there are none. What is `explicit` is kept.

    Raises:
        ValueError: nobody measured the model, or nothing keeps to the budget on it.
    """
    quality = args.quality
    if quality == "exact":
        return args, config, EXACT
    if args.num_gpus > 1:
        logger.info("quality=%r: the model is loaded as it is: it was measured on one device", quality)
        return args, config, Loaded(quality)
    tuned = find_tuned(weight_hashes(repo))
    level = level_of(tuned, quality, args.model)
    assert tuned is not None
    loading: Tuned | None = level.get("loading")
    options: dict[str, Any] = {} if loading is None else loading["options"]
    picked = dataclasses.replace(args, **options)
    changed = picked.resolved_pipeline_config(config)
    reason = _why_as_it_is(tuned, loading, repo, args, config, explicit)
    if reason is None:
        try:
            check = resolve("fastvideo.entrypoints.planning.choose:check")  # imported on use: it knows all models
            check(repo, changed, picked, current_platform(args.device).device_type)
        except ValueError as error:
            reason = str(error)
    if reason is not None or loading is None:
        require(bool(level["fields"]), "quality", quality, f"is a precision alone on {args.model}, and {reason}",
                "use quality='exact'")  # fmt: skip
        logger.info("quality=%r: the model is loaded as it is: %s", quality, reason)
        return args, config, Loaded(quality)
    logger.info("quality=%r: %s, a step %.2f times as fast", quality, in_words(options), loading["times_as_fast"])
    return picked, changed, Loaded(quality, options, tuple(loading["keeps"]))


def _why_as_it_is(
    tuned: Tuned, loading: Tuned | None, repo: Repo, args: FastVideoArgs, config: PipelineConfig,
    explicit: Collection[str],
) -> str | None:  # fmt: skip
    """Why the precision that was measured is not taken; None when it may be."""
    given = [name for name in OF_LOADING if name in explicit]
    given += ["FASTVIDEO_ATTENTION_BACKEND"] if envs.attention_backend() else []
    machine, now, then = machine_of(current_platform(args.device)), config.to_dict(), tuned["pipeline_config"]
    if given or args.weight_paths:
        return f"{', '.join(given or args.weight_paths)} is given"
    if "loadings" not in tuned:
        return f"none was measured; run fastvideo tune {args.model} again"
    if tuned["machine"] != machine:
        return f"it was measured on another machine ({tuned['machine']}); run fastvideo tune {args.model} here"
    if loading is None:
        return "none that was measured is quicker and keeps to the error budget"
    # as text, since what was read from a file has lists
    if any(json.dumps(now[name]) != json.dumps(then[name]) for name in then if "precision" in name):
        return "it was measured against another one"
    return None


def in_words(options: Mapping[str, Any]) -> str:
    """Options or fields as a user would write them, without the long ones."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items() if name != "cache_coefficients")


def in_plain_fields(
    sampling: SamplingParam,
    model: str,
    entry: ModelEntry,
    look_up: Callable[[], Tuned | None],
    loaded: Loaded = EXACT,
) -> SamplingParam:
    """A copy of `sampling` in which the fields say all: what `quality` stands for, the model's own coefficients, and
    what the environment says of the gate. So a clip's file has all that made it.

    Args:
        sampling: checked.
        model: as the user named it.
        entry: its registration.
        look_up: `find_tuned` for its weights; called when it is needed.
        loaded: what the model was loaded for.

    Raises:
        ValueError: `quality` needs a measurement that nobody made, or that holds another version's fields; or the
            weights were loaded for another one.
    """
    plain, guided = copy.copy(sampling), sampling.guidance_scale > 1
    tuned: Tuned | None = None
    gate = envs.cfg_gate_step()
    quality = sampling.quality or ("exact" if given(sampling, SPEED) else loaded.quality)
    fits = not loaded.options or sampling.quality is None or quality in loaded.keeps
    require(fits, "quality", quality, f"the weights were loaded for quality={loaded.quality!r}, with "
            f"{in_words(loaded.options)}", f"load the model with quality={quality!r}")  # fmt: skip
    if quality != "exact":
        tuned = look_up()
        level = level_of(tuned, quality, model)
        assert tuned is not None
        require(bool(level["fields"] or loaded.options), "quality", quality, f"is a precision alone on {model}",
                f"load the model with quality={quality!r}")  # fmt: skip
        require(gate in (None, 1) or not guided, "FASTVIDEO_CFG_GATE_STEP", gate, f"quality={quality!r} picks the gate",
                "unset it, or use quality='exact'")  # fmt: skip
        fields = {name: value for name, value in level["fields"].items() if guided or name not in OF_GUIDANCE}
        plain.update(**fields)
        _tell(quality, plain, tuned)
    plain.quality = "exact"
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
