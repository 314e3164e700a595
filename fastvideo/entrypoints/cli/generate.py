"""`fastvideo generate`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from fastvideo import envs
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import SHIPPED_NAME
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.cli.parser import REQUEST_KEYS, UsageError
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import init_logger

if TYPE_CHECKING:
    from fastvideo.entrypoints.result import GenerationResult

logger = init_logger(__name__)

HELP = "fastvideo generate --help"
SHORT_FLAGS = {
    "seed": "seed",
    "steps": "num_inference_steps",
    "frames": "num_frames",
    "guidance": "guidance_scale",
    "negative": "negative_prompt",
    "quality": "quality",
    "image": "image_path",
    "last_image": "last_image_path",
    "video": "video_path",
    "mask": "mask_path",
    "reference": "reference_paths",
    "pose_video": "pose_video_path",
    "face_video": "face_video_path",
    "background_video": "background_video_path",
    "mask_video": "mask_video_path",
    "start_video": "start_video_path",
    "image_fit": "image_fit",
}
"""The sampling field that each short flag sets."""


@dataclass(frozen=True)
class Job:
    """What one call of the command asks for, checked as far as that goes without loading anything."""

    prompts: list[str]
    model: str
    engine: dict[str, Any]
    sampling: SamplingParam
    contact_sheet: Path | None


def run(options: Namespace) -> int:
    """Make the videos, and say where they are."""
    job = job_of(options)
    # imported late: torch takes seconds, and what is wrong above should be said at once
    from fastvideo.entrypoints import media

    media.output_file(job.sampling.output_path, job.prompts[0] if job.prompts else "")
    if job.contact_sheet is not None:
        media.check_writable(job.contact_sheet.parent)
    from fastvideo.entrypoints.video_generator import VideoGenerator

    with VideoGenerator.from_pretrained(job.model, **job.engine) as generator:
        prompt = job.prompts[0] if len(job.prompts) == 1 else job.prompts
        made = generator.generate_video(prompt, sampling_param=job.sampling)
    launched = envs.torchrun()
    if launched is not None and launched.rank > 0:
        return 0  # the first process says it, for all
    results = made if isinstance(made, list) else [made]
    for number, result in enumerate(results):
        assert result.video_path is not None
        print(f"{media.on_disk(result.video_path)}: {summary(result, job.sampling.fps)}")
        if job.contact_sheet is not None:
            assert result.frames is not None
            suffix = f"_{number}" if number else ""
            sheet = job.contact_sheet.with_name(f"{job.contact_sheet.stem}{suffix}{job.contact_sheet.suffix}")
            print(f"{media.contact_sheet(result.frames, sheet)}: contact sheet")
    return 0


def summary(result: "GenerationResult", fps: int) -> str:
    """A clip in a few words."""
    height, width, count = result.size
    saved, total = result.saved_block_runs, result.saved_block_runs + result.block_runs
    return (
        f"{count} frames of {width}x{height}, {fps} a second, seed {result.seed}, in {result.generation_time:.1f} s"
        + (f", {saved} of {total} block runs saved" if saved else "")
    )


def job_of(options: Namespace) -> Job:
    """Flags over dotted flags over the config file over the model's defaults.

    Raises:
        UsageError: no prompt, or a flag's value has the wrong form.
        ValueError: a value breaks a rule.
    """
    engine, request = given(options.generator), given(options.request)
    prompt = request.get("prompt") if options.prompt is None else options.prompt
    if prompt is None:
        raise UsageError('no prompt; give one in quotes, as in fastvideo generate "a red circle"', HELP)
    in_file = engine.pop("model", None)
    named = options.model or in_file
    model = named or SHIPPED_NAME
    if wiring := engine.pop("pipeline_config", None):
        engine["pipeline_config"] = PipelineConfig.from_pretrained(model)
        engine["pipeline_config"].update(**wiring)
    if options.lora:
        engine["lora_path"] = options.lora
    if options.quality is not None:  # of the video, and of the precision that makes it
        engine.setdefault("quality", options.quality)
    FastVideoArgs.from_kwargs(model, **engine)
    sampling, sheet = SamplingParam.from_pretrained(model), sheet_of(options.contact_sheet)
    fields = {name: request[name] for name in REQUEST_KEYS if name in request}
    sampling.update(**fields | request.get("sampling", {}) | short_fields(options))
    sampling.update(save_video=True, return_frames=sheet is not None)
    sampling.check()
    sampling.check_inputs(sampling.given_media(), type(sampling))
    if not named:
        logger.info("no --model: using %s, the model in the package", SHIPPED_NAME)
    return Job([prompt] if isinstance(prompt, str) else prompt, model, engine, sampling, sheet)


def given(options: Any) -> dict[str, Any]:
    """What a user gave, nested as it is."""
    found = {}
    for name, value in vars(options).items():
        value = given(value) if isinstance(value, Namespace) else value
        if value is not None and value != {}:
            found[name] = value
    return found


def short_fields(options: Namespace) -> dict[str, Any]:
    """The sampling fields that the short flags set.

    Raises:
        UsageError: `--size` has another form.
    """
    fields = {field: options[flag] for flag, field in SHORT_FLAGS.items() if options[flag] is not None}
    if options.size is not None:
        found = re.fullmatch(r"(\d+)[xX](\d+)", options.size)
        if not found:
            raise UsageError(f"--size={options.size}: must be WIDTHxHEIGHT, such as 832x480", HELP)
        fields |= {"width": int(found[1]), "height": int(found[2])}
    if options.output is not None:
        fields["output_path"] = output_of(options.output)
    return fields


def output_of(flag: str) -> str:
    """The output path that `-o` means: without a suffix it is a folder of PNGs."""
    from fastvideo.entrypoints.media import PNG_PATTERN

    path = Path(flag)
    folder = flag.endswith("/") or path.is_dir() or not path.suffix
    return str(path / PNG_PATTERN) if folder else flag


def sheet_of(flag: str | None) -> Path | None:
    """The file that `--contact-sheet` means.

    Raises:
        UsageError: it is no PNG.
    """
    if flag is None or flag.lower().endswith(".png"):
        return None if flag is None else Path(flag)
    raise UsageError(f"--contact-sheet={flag}: must end in .png", HELP)
