"""`fastvideo replay`: the clip of a file again, from what the file says about itself."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.sample.base import MEDIA, SamplingParam
from fastvideo.logger import init_logger
from fastvideo.utils import require

logger = init_logger(__name__)


def run(options: Namespace) -> int:
    """Make the clip again and say whether it is the same; 1 when it is not.

    Raises:
        ValueError: the file carries no metadata, is joined from two videos, or the model's weights are others and
            `--force` is not given.
    """
    from fastvideo.entrypoints import media

    clip = Path(options.clip)
    metadata = media.read_metadata(clip)
    require("extends" not in metadata, "clip", str(clip), "is a video and what a server made to follow it, joined",
            "there is no way to make it again")  # fmt: skip
    settings = settings_of(metadata, clip)
    compare_inputs(settings["sampling"], options, metadata["inputs"], force=options.force)
    target = media.output_file(options.output or default_output(clip), settings["prompt"], clip.suffix or ".mp4")
    model = options.model or metadata["model"]["name"]
    same_versions = warn_of_versions(metadata)
    same_model = compare_weights(model, metadata, force=options.force)
    loras = loras_of(metadata, options.lora or [])

    import torch

    from fastvideo.entrypoints.video_generator import VideoGenerator

    if metadata["device"] == "cpu":
        torch.set_num_threads(metadata["threads"])
    with VideoGenerator.from_pretrained(model, **settings["engine"]) as generator:
        for nickname, path, strength in loras:
            generator.set_lora_adapter(nickname, path, strength, accumulate=True)
        if loras and metadata["lora"]["merged"]:
            generator.merge_lora_weights()
        written = generate(generator, settings, target)
    same = compare(clip, written)
    words = {True: "the same, bit for bit, as", False: "NOT the same as", None: "made as"}
    print(f"{written}: {words[same]} {clip}")
    if same is False and same_model and same_versions:
        logger.error("%s differs though model and versions are the same", written)
    return 1 if same is False else 0


def default_output(clip: Path) -> Path:
    """Beside the clip, under a name of its own."""
    from fastvideo.entrypoints.media import PNG_PATTERN

    named = clip if clip.name else clip.absolute()  # "." has no name
    beside = named.with_name(f"{named.stem}_replay{named.suffix}")
    return beside / PNG_PATTERN if clip.is_dir() else beside


def settings_of(metadata: dict[str, Any], clip: Path) -> dict[str, Any]:
    """Keywords for the generator, from a clip's metadata.

    Raises:
        ValueError: something is missing, or is from a version with other fields.
    """
    try:
        request = dict(metadata["request"])
        prompt = request.pop("prompt")
        wiring = {name: tuple(value) if isinstance(value, list) else value
                  for name, value in metadata["pipeline_config"].items()}  # fmt: skip
        names = ("precision", "attention_backend", "enable_torch_compile", "torch_compile_kwargs", "device",
                 "quantization", "text_encoder_quantization")  # fmt: skip
        engine = {name: metadata[name] for name in names} | {"revision": metadata["model"]["revision"]}
        engine |= metadata["devices"] | metadata["attention_options"]
        engine |= {f"{name}_path": path for name, path in metadata["weight_paths"].items()}
        index, _ = (
            metadata["index"],
            (metadata["threads"], metadata["model"]["weights"], metadata["versions"], metadata["inputs"]),
        )
    except KeyError as error:
        raise ValueError(f"{clip}: its metadata has no {error}; it is from another version of fastvideo") from error
    config, sampling = PipelineConfig(), SamplingParam()
    config.update(**wiring)
    sampling.update(**request)
    return {"prompt": prompt, "sampling": sampling, "index": index, "engine": engine | {"pipeline_config": config}}


def compare_inputs(sampling: SamplingParam, options: Namespace, then: dict[str, str], force: bool) -> None:
    """Point `sampling` to where `options` say that the images and videos are now, and check that they are the same.

    Raises:
        ValueError: one that made the clip is not there, or is another and `force` is not given.
    """
    if not then:
        return
    from fastvideo.entrypoints.media_inputs import digests, read_media

    flags = {"reference_paths": "reference", **{field: name for name, field in MEDIA.items() if name in options}}
    sampling.update(**{field: options[flag] for field, flag in flags.items() if options[flag] is not None})
    for name in then:
        flag = flags[MEDIA[name]].replace("_", "-")
        given = getattr(sampling, MEDIA[name]) is not None
        require(given, name, "...", "the clip was made of pixels that have no file", f"give them with --{flag}")
    now = digests(read_media(sampling, {}))
    different = ", ".join(name for name in then if now.get(name) != then[name])
    message = f"{different}: not what the clip was made of"
    if different and not force:
        raise ValueError(f"{message}; say where that is now, as with --image, or go on with another clip with --force")
    if different:
        logger.warning("%s: the clip will differ", message)


def warn_of_versions(metadata: dict[str, Any]) -> bool:
    """Whether all versions are those that the clip was made with; each other one is a warning."""
    from fastvideo import __version__
    from fastvideo.entrypoints.metadata import versions

    then = {"fastvideo": metadata["fastvideo"], **metadata["versions"]}
    now = {"fastvideo": __version__, **versions(metadata["versions"])}
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            logger.warning("%s was %s and is %s: pixels may differ", name, then.get(name), now.get(name))
    return then == now


def compare_weights(model: str, metadata: dict[str, Any], force: bool) -> bool:
    """Whether the model's weights are those that made the clip; only with `force` may they differ.

    Raises:
        ValueError: they differ.
    """
    from fastvideo.models.loader.gguf_source import with_weights
    from fastvideo.models.loader.repo import resolve_repo
    from fastvideo.models.loader.weights import weight_hashes

    repo = with_weights(resolve_repo(model, metadata["model"]["revision"]), metadata["weight_paths"])
    then, now = metadata["model"]["weights"], weight_hashes(repo)
    different = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if not different:
        return True
    message = f"{model}: not the weights that made the clip ({', '.join(different)})"
    if not force:
        raise ValueError(f"{message}; name the model with --model, or go on with another clip with --force")
    logger.warning("%s: the clip will differ", message)
    return False


def loras_of(metadata: dict[str, Any], moved: list[str]) -> list[tuple[str, str, float]]:
    """Nickname, path and strength of each LoRA of the clip.

    Args:
        metadata: of the clip.
        moved: where to look for files first; which of them is whose, their contents say.

    Raises:
        ValueError: one is not there, or has changed; or one of `moved` is none of them.
    """
    from fastvideo.models.loader.lora_files import find_lora
    from fastvideo.models.loader.weights import file_hashes

    def hashes(path: str) -> list[str]:
        return sorted(file_hashes({file.name: file.path for file in find_lora(path, transformers=2)}).values())

    # a clip from before there were any has no such entry
    adapters = (metadata.get("lora") or {}).get("adapters", [])
    wanted = {adapter["nickname"]: sorted(adapter["files"].values()) for adapter in adapters}
    now = {path: hashes(path) for path in moved}
    for path, found in now.items():
        if found not in wanted.values():
            raise ValueError(f"--lora={path}: is no LoRA of the clip; it has {', '.join(wanted) or 'none'}")
    loras = []
    for adapter in adapters:
        nickname, path = adapter["nickname"], adapter["path"]
        path = next((other for other, found in now.items() if found == wanted[nickname]), path)
        try:
            found = hashes(path)
        except ValueError as error:
            raise ValueError(f"LoRA {nickname!r} of the clip: {error}; say with --lora where it is now") from None
        if found != wanted[nickname]:
            raise ValueError(f"LoRA {nickname!r} of the clip: {path} is another file now; say with --lora where it is")
        loras.append((nickname, path, adapter["strength"]))
    return loras


def generate(generator: Any, settings: dict[str, Any], target: Path) -> Path:
    """Make the clip, alone of those that its request made together, at `target`."""
    from fastvideo.entrypoints.media import on_disk

    sampling: SamplingParam = settings["sampling"]
    if sampling.num_videos_per_prompt == 1:
        result = generator.generate_video(settings["prompt"], sampling_param=sampling, output_path=str(target))
        return on_disk(result.video_path)
    home = target.parent.parent if target.suffix == ".png" else target.parent
    with tempfile.TemporaryDirectory(prefix=".replay-", dir=home) as folder:
        inside = Path(folder) / target.relative_to(home)
        results = generator.generate_video(settings["prompt"], sampling_param=sampling, output_path=str(inside))
        made, final = on_disk(results[settings["index"]].video_path), on_disk(target)
        if final.is_dir():
            shutil.rmtree(final)
        return made.replace(final)


def compare(clip: Path, written: Path) -> bool | None:
    """Whether two clips show the same; None where they are of two formats, which does not tell."""
    from fastvideo.entrypoints.media import read_frames

    if clip.suffix.lower() != written.suffix.lower():
        return None
    first, second = read_frames(clip), read_frames(written)
    return first.shape == second.shape and bool((first == second).all())
