"""`fastvideo tune`: from the flags to measurements, a choice, a file and a picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from tqdm import tqdm

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.distributed.groups import ONE_RANK
from fastvideo.entrypoints.cli.report import table
from fastvideo.entrypoints.metadata import QUANTIZERS, versions
from fastvideo.entrypoints.planning.choose import check
from fastvideo.entrypoints.planning.dry import bare
from fastvideo.entrypoints.quality import FORMAT, MEASURED_AT, file_of, in_words, machine_of
from fastvideo.entrypoints.tune.loadings import Loading, Options, loading_rows, pick, search_loadings, together
from fastvideo.entrypoints.tune.measure import Bench, Clip, Point, Recorder
from fastvideo.entrypoints.tune.plot import check_matplotlib, draw
from fastvideo.entrypoints.tune.prompts import prompts_for
from fastvideo.entrypoints.tune.search import BUDGETS, MARGIN, choose, search
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import init_logger
from fastvideo.models.loader.attention import choose_attention
from fastvideo.models.loader.repo import Repo, resolve_repo
from fastvideo.models.loader.weights import weight_hashes
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.platforms import current_platform
from fastvideo.utils import atomic_path, require, resolve

logger = init_logger(__name__)

SEED = 1000
"""Of the first clip; each has its own."""


def run(options: Namespace) -> int:
    """Measure, choose, check the choice on other prompts, and write all that; 1 when a level has nothing to offer.

    Raises:
        ValueError: an option that cannot be, or a model that cannot be measured.
    """
    for name, least in (("clips", 1), ("held_out", 0)):
        value = getattr(options, name)
        require(value >= least, f"--{name.replace('_', '-')}", value, f"must be {least} or more")
    if options.no_plot:
        require(options.plot is None, "--plot", options.plot, "does nothing with --no-plot", "leave one of them out")
    else:
        check_matplotlib()
    args = FastVideoArgs.from_kwargs(options.model, precision=options.precision, device=options.device)
    repo = resolve_repo(args.model)
    sampling = sampling_of(repo, options)
    prompts = prompts_for(repo.entry.name, options.clips + options.held_out, options.prompts)
    config = args.resolved_pipeline_config(resolve(repo.entry.pipeline_config)())
    found = search_all(Loader(repo, args, config, sampling), prompts, options.clips)
    weights = weight_hashes(repo)
    output = Path(options.output) if options.output else file_of(weights)
    content = {
        "format": FORMAT,
        "model": repo.entry.name,
        "weights": weights,
        "request": {name: getattr(sampling, name) for name in MEASURED_AT},
        "pipeline_config": config.to_dict(),
        "versions": versions(QUANTIZERS),
        "machine": machine_of(current_platform(args.device)),
        **found.to_json(),
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(rows(found.points, found.chosen, found.held_out)))
    print(f"\n{table(loading_rows(found.loadings, found.picked, found.picked_held_out, found.step))}\n")
    levels = found.levels()
    print(f"{output}: measured, and chosen for {', '.join(levels) or 'no level'}")
    if not options.no_plot:
        picture = Path(options.plot) if options.plot else output.with_suffix(".png")
        title = f"{args.model}, {sampling.num_inference_steps} steps, {options.clips} clips"
        draw(found.points, found.chosen, title, picture, found.loadings)
        print(f"{picture}: the curve")
    return 0 if levels.keys() == BUDGETS.keys() else 1


class Loader:
    """Loads one model, each time with other options beside those given."""

    def __init__(self, repo: Repo, args: FastVideoArgs, config: PipelineConfig, sampling: SamplingParam) -> None:
        """`config` has the precision that `args` ask for."""
        self.repo, self.args, self.config, self.sampling = repo, args, config, sampling

    def __call__(self, options: Options) -> Bench:
        """A bench of the model with `options`."""
        args, config = self._with(options)
        pipeline: type[ComposedPipelineBase] = resolve(self.repo.entry.pipeline)
        return Bench(pipeline.from_repo(self.repo, args, config), self.sampling)

    def why_not(self, options: Options) -> str | None:
        """Why it cannot be loaded so here, or would be the same; None when it can."""
        args, config = self._with(options)
        platform = current_platform(args.device)
        same_attention = args.attention_backend == self.args.attention_backend
        if config.dit_precision == self.config.dit_precision and args.quantization is None and same_attention:
            return "the transformer computes in it already"
        try:
            platform.dtype(config.dit_precision)
            check(self.repo, config, args, platform.device_type)
            for source in filter(lambda one: one.has_weights, self.repo.components.values()):
                dtype = platform.dtype(config.precision_of(source.name))
                choose_attention(*bare(source, config), dtype, args, platform, ONE_RANK)
        except ValueError as error:
            return str(error)
        return None

    def _with(self, options: Options) -> tuple[FastVideoArgs, PipelineConfig]:
        args = dataclasses.replace(self.args, **options)
        return args, args.resolved_pipeline_config(self.config)


@dataclasses.dataclass(kw_only=True)
class Found:
    """All that was measured of a model."""

    clips: list[Clip]
    others: list[Clip]
    """Of prompts that nothing is chosen with."""
    coefficients: dict[str, list[float]]
    points: list[Point]
    chosen: dict[str, Point]
    held_out: dict[str, Point]
    loadings: list[Loading] = dataclasses.field(default_factory=list)
    picked: dict[str, Loading] = dataclasses.field(default_factory=dict)
    picked_held_out: dict[str, Point] = dataclasses.field(default_factory=dict)

    @property
    def step(self) -> float:
        """Seconds of a step of an exact clip; of the others nothing was recorded meanwhile."""
        return min(clip.step for clip in (*self.clips, *self.others))

    def levels(self) -> dict[str, dict[str, Any]]:
        """What each level stands for: fields, and where it is quicker a precision; one without either is left out."""
        levels = {}
        for level, budget in BUDGETS.items():
            loading = self.picked.get(level)
            point = self.chosen.get(level) or (loading.levels[level] if loading else None)
            if point is not None:
                levels[level] = {**point.to_json(), "budget": budget, "held_out": told(self.held_out.get(level)),
                                 "loading": self._told(level, loading)}  # fmt: skip
        return levels

    def _told(self, level: str, loading: Loading | None) -> dict[str, Any] | None:
        if loading is None:
            return None
        point = loading.levels[level]
        return {"options": loading.options, "times_as_fast": round(loading.times, 3), "keeps": loading.keeps,
                "mean": round(point.mean, 2), "lowest": round(point.lowest, 2),
                "held_out": told(self.picked_held_out.get(level))}  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return {
            "step_seconds": round(self.step, 5),
            "coefficients": self.coefficients,
            "levels": self.levels(),
            "loadings": [loading.to_json() for loading in self.loadings],
            "points": [without_coefficients(point) for point in self.points],
        }


def search_all(load: Loader, prompts: Sequence[str], count: int) -> Found:
    """The fields that save block runs, in the model's own precision; then other loadings, alone and with the fields."""
    found = search_fields(load({}), prompts, count)  # whose model is gone when the next one is loaded
    found.loadings = search_loadings(load, load.why_not, found.clips, found.chosen, found.step)
    found.picked = pick(found.loadings, found.chosen, found.step)
    for loading, levels in list(together(found.picked)) if found.others else ():
        held_out = checked(load(loading.options), found.others, {level: loading.levels[level] for level in levels})
        found.picked_held_out |= held_out
        for level, point in held_out.items():
            if point.lowest < BUDGETS[level]:
                logger.warning("%s: %s is not taken", level, in_words(loading.options))
                del found.picked[level], found.picked_held_out[level]
    return found


def search_fields(bench: Bench, prompts: Sequence[str], count: int) -> Found:
    """The exact clips, the first `count` to choose with, and the fields of each level."""
    clips, coefficients = exact_clips(bench, prompts[:count])
    points = measured(bench, clips, coefficients)
    chosen = choose(points)
    others = [
        bench.exact(prompt, SEED + count + number)
        for number, prompt in enumerate(tqdm(prompts[count:], desc="held-out clips", disable=None))
    ]
    return Found(clips=clips, others=others, coefficients=coefficients, points=points, chosen=chosen,
                 held_out=checked(bench, others, chosen))  # fmt: skip


def sampling_of(repo: Repo, options: Namespace) -> SamplingParam:
    """The request that is measured: the model's own defaults, and what the flags say.

    Raises:
        ValueError: the model needs more than a prompt, or a value breaks a rule.
    """
    sampling: SamplingParam = resolve(repo.entry.sampling)()
    require(not sampling.needs, "model", options.model, f"needs {', '.join(sampling.needs)}, and here are "
            "prompts alone", "set cache and cache_threshold instead of quality")  # fmt: skip
    given = {"num_inference_steps": options.steps, "num_frames": options.frames, "guidance_scale": options.guidance}
    sampling.update(**{name: value for name, value in given.items() if value is not None})
    if options.size is not None:
        width, cross, height = options.size.lower().partition("x")
        require(bool(cross) and width.isdigit() and height.isdigit(), "--size", options.size,
                "must be WIDTHxHEIGHT, such as 832x480")  # fmt: skip
        sampling.update(width=int(width), height=int(height))
    sampling.update(save_video=False)
    sampling.check()
    return sampling


def exact_clips(bench: Bench, prompts: Sequence[str]) -> tuple[list[Clip], dict[str, list[float]]]:
    """The clips to compare with, and what caches need to know of the model, which is seen while they are made."""
    sampling = bench.sampling
    with Recorder(bench.pipeline, 1 + (sampling.guidance_scale > 1), sampling.num_inference_steps) as recorder:
        clips = [
            bench.exact(prompt, SEED + number)
            for number, prompt in enumerate(tqdm(prompts, desc="exact clips", disable=None))
        ]
    return clips, recorder.coefficients()


def measured(bench: Bench, clips: Sequence[Clip], coefficients: dict[str, list[float]]) -> list[Point]:
    """All points."""
    with tqdm(desc="candidates", disable=None) as bar:

        def measure(fields: dict[str, Any]) -> Point:
            point = bench.measure(fields, clips, floor=min(BUDGETS.values()) + MARGIN)
            logger.info("%s: %.1f%% saved, %.1f dB, lowest %.1f", in_words(fields), 100 * point.saved, point.mean,
                        point.lowest)  # fmt: skip
            bar.update()
            return point

        return search(measure, bench.sampling.guidance_scale > 1, coefficients)


def checked(bench: Bench, clips: Sequence[Clip], chosen: dict[str, Point]) -> dict[str, Point]:
    """Each level on `clips`, of prompts that were not used to choose it."""
    if not clips:
        return {}
    found = {}
    for level, point in chosen.items():
        shown = tqdm(clips, desc=f"held-out clips, {level}", disable=None)
        found[level] = joined([bench.measure(point.fields, [clip]) for clip in shown])
        if found[level].lowest < BUDGETS[level]:
            logger.warning("%s: a held-out clip is at %.1f dB, below its budget of %.0f; tune with more --clips",
                           level, found[level].lowest, BUDGETS[level])  # fmt: skip
    return found


def joined(several: Sequence[Point]) -> Point:
    """Points of the same fields as one."""
    return Point(
        fields=several[0].fields,
        psnr=tuple(value for point in several for value in point.psnr),
        saved=sum(point.saved for point in several) / len(several),
        step=min(point.step for point in several),
    )


def rows(points: Sequence[Point], chosen: dict[str, Point], held_out: dict[str, Point]) -> list[tuple[str, ...]]:
    """A table of all points, by what they save, then of the levels on held-out prompts."""
    names = {id(point): level for level, point in chosen.items()}
    found = [("fields", "saved", "mean dB", "lowest dB", "chosen for")]
    for point in sorted(points, key=lambda point: point.saved):
        found.append((*cells(point), names.get(id(point), "")))
    found += [(*cells(point), f"{level}, on {len(point.psnr)} other clips") for level, point in held_out.items()]
    return list(found)


def cells(point: Point) -> tuple[str, str, str, str]:
    """A point in a table."""
    return in_words(point.fields), f"{point.saved:.1%}", f"{point.mean:.1f}", f"{point.lowest:.1f}"


def told(point: Point | None) -> dict[str, Any] | None:
    """A held-out measurement for the file."""
    return None if point is None else {name: value for name, value in point.to_json().items() if name != "fields"}


def without_coefficients(point: Point) -> dict[str, Any]:
    """A point for the file, which has the coefficients once."""
    fields = {name: value for name, value in point.fields.items() if name != "cache_coefficients"}
    return dataclasses.replace(point, fields=fields).to_json()
