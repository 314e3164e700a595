"""`fastvideo tune`: from the flags to measurements, a choice, a file and a picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from tqdm import tqdm

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.cli.report import table
from fastvideo.entrypoints.metadata import versions
from fastvideo.entrypoints.quality import FORMAT, MEASURED_AT, file_of
from fastvideo.entrypoints.tune.measure import Bench, Clip, Point, Recorder
from fastvideo.entrypoints.tune.plot import check_matplotlib, draw
from fastvideo.entrypoints.tune.prompts import prompts_for
from fastvideo.entrypoints.tune.search import BUDGETS, MARGIN, choose, search
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import init_logger
from fastvideo.models.loader.repo import Repo, resolve_repo
from fastvideo.models.loader.weights import weight_hashes
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
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
    if not options.no_plot:
        check_matplotlib()
    args = FastVideoArgs.from_kwargs(options.model, precision=options.precision, device=options.device)
    repo = resolve_repo(args.model)
    sampling = sampling_of(repo, options)
    prompts = prompts_for(repo.entry.name, options.clips + options.held_out, options.prompts)
    config = args.resolved_pipeline_config(resolve(repo.entry.pipeline_config)())
    pipeline: type[ComposedPipelineBase] = resolve(repo.entry.pipeline)
    bench = Bench(pipeline.from_repo(repo, args, config), sampling)
    clips, coefficients = exact_clips(bench, prompts[: options.clips])
    points = measured(bench, clips, coefficients)
    chosen = choose(points)
    held_out = checked(bench, prompts[options.clips :], SEED + options.clips, chosen)
    weights = weight_hashes(repo)
    output = Path(options.output) if options.output else file_of(weights)
    content = {
        "format": FORMAT,
        "model": repo.entry.name,
        "weights": weights,
        "request": {name: getattr(sampling, name) for name in MEASURED_AT},
        "pipeline_config": config.to_dict(),
        "versions": versions(),
        "coefficients": coefficients,
        "levels": {
            level: {**point.to_json(), "budget": BUDGETS[level], "held_out": told(held_out.get(level))}
            for level, point in chosen.items()
        },
        "points": [without_coefficients(point) for point in points],
    }
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(rows(points, chosen, held_out)))
    print(f"{output}: measured, and chosen for {', '.join(chosen) or 'no level'}")
    if not options.no_plot:
        picture = Path(options.plot) if options.plot else output.with_suffix(".png")
        draw(points, chosen, f"{args.model}, {sampling.num_inference_steps} steps, {len(clips)} clips", picture)
        print(f"{picture}: the curve")
    return 0 if chosen.keys() == BUDGETS.keys() else 1


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
            logger.info("%s: %.1f%% saved, %.1f dB, lowest %.1f", words(fields), 100 * point.saved, point.mean,
                        point.lowest)  # fmt: skip
            bar.update()
            return point

        return search(measure, bench.sampling.guidance_scale > 1, coefficients)


def checked(bench: Bench, prompts: Sequence[str], seed: int, chosen: dict[str, Point]) -> dict[str, Point]:
    """Each level on prompts that were not used to choose it."""
    found: dict[str, list[Point]] = {level: [] for level in chosen}
    for number, prompt in enumerate(tqdm(prompts, desc="held-out clips", disable=None)):
        clip = bench.exact(prompt, seed + number)
        for level, point in chosen.items():
            found[level].append(bench.measure(point.fields, [clip]))
    together = {level: joined(several) for level, several in found.items() if several}
    for level, point in together.items():
        if point.lowest < BUDGETS[level]:
            logger.warning("%s: a held-out clip is at %.1f dB, below its budget of %.0f; tune with more --clips",
                           level, point.lowest, BUDGETS[level])  # fmt: skip
    return together


def joined(several: Sequence[Point]) -> Point:
    """Points of the same fields as one."""
    return Point(
        fields=several[0].fields,
        psnr=tuple(value for point in several for value in point.psnr),
        saved=sum(point.saved for point in several) / len(several),
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
    return words(point.fields), f"{point.saved:.1%}", f"{point.mean:.1f}", f"{point.lowest:.1f}"


def words(fields: dict[str, Any]) -> str:
    """Fields as a user would write them, without the long ones."""
    return ", ".join(f"{name}={value!r}" for name, value in fields.items() if name != "cache_coefficients")


def told(point: Point | None) -> dict[str, Any] | None:
    """A held-out measurement for the file."""
    return None if point is None else {name: value for name, value in point.to_json().items() if name != "fields"}


def without_coefficients(point: Point) -> dict[str, Any]:
    """A point for the file, which has the coefficients once."""
    fields = {name: value for name, value in point.fields.items() if name != "cache_coefficients"}
    return dataclasses.replace(point, fields=fields).to_json()
