"""`fastvideo plan`: how a model would share its work among devices, and what that costs. Reads no weight."""

from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from fastvideo.configs.sample.speed import QUALITIES
from fastvideo.distributed.layout import Layout
from fastvideo.entrypoints.cli.report import table
from fastvideo.fastvideo_args import DEGREES, FastVideoArgs
from fastvideo.models.loader.plan import ModelNumbers, blueprints_of, layout_of, numbers_of, step_shape
from fastvideo.utils import require

if TYPE_CHECKING:
    from fastvideo.configs.pipelines.base import PipelineConfig
    from fastvideo.models.loader.repo import Repo

GB = 1e9
MEMORIES = ("gpu_memory", "ram", "memory")
FOR_ONE = ("gpu_memory", "ram", "quality")
"""Flags that ask for one device."""


def run(options: Namespace) -> int:
    """Print the layout that would be chosen, what each device holds and sends, and the same of others; for one device
    what each stage needs.

    Raises:
        ValueError: a flag's value cannot be or does nothing, the layout asked for cannot work, or the model cannot be
            planned.
    """
    check_values(options)
    if options.num_gpus == 1 or any(getattr(options, name) is not None for name in FOR_ONE):
        return one_device(options)
    from fastvideo.distributed.cost import bytes_sent
    from fastvideo.models.loader.repo import resolve_repo
    from fastvideo.platforms import current_platform
    from fastvideo.utils import resolve

    count = 2 if options.num_gpus is None else options.num_gpus
    for name, value in (("--size", options.size), ("--frames", options.frames)):
        require(value is None, name, value, "is for one device", "give --gpu-memory or --ram, or leave it out")
    asked = {name: getattr(options, name) for name in DEGREES if getattr(options, name) is not None}
    asked["use_fsdp_inference"] = options.fsdp
    args = FastVideoArgs.from_kwargs(options.model, num_gpus=count, precision=options.precision, **asked)
    repo = resolve_repo(args.model)
    args.check_combinations(None, repo.entry.streams)
    config = args.resolved_pipeline_config(resolve(repo.entry.pipeline_config)())
    plans = blueprints_of(repo)
    numbers = numbers_of(plans, repo.entry, config, args)
    shape = step_shape(plans, config, resolve(repo.entry.sampling)())
    memory = options.memory * GB if options.memory is not None else current_platform().total_memory()
    chosen = layout_of(numbers, args, memory=int(memory), vae=config.vae_sp is not False)
    rows = [("layout", "weights of a device", "sent by a device in a step", "asked for with")]
    for layout, words in alternatives(numbers, args, chosen, int(memory)):
        if isinstance(layout, str):
            rows.append((words, "-", "-", layout))
            continue
        weights = f"{numbers.bytes_per_device(layout) / GB:.2f} GB"
        sent = f"{sum(bytes_sent(shape, layout).values()) / GB:.3f} GB"
        rows.append((str(layout) + (" (chosen)" if layout == chosen else ""), weights, sent, words))
    fits = numbers.bytes_per_device(chosen) <= memory
    print(f"{repo.model} on {count} devices of {memory / GB:.0f} GB: {chosen}")
    print(f"{shape.tokens:,} tokens at the model's own size; a step with guidance\n\n{table(rows)}")
    if not fits:
        print(f"\nthe weights of a device do not fit into its {memory / GB:.0f} GB: use more devices")
    return 0 if fits else 1


def check_values(options: Namespace) -> None:
    """Check what can be told of the flags' values without the model.

    Raises:
        ValueError: no such amount of memory, number of devices or level of quality.
    """
    for name in MEMORIES:
        value = getattr(options, name)
        require(value is None or value > 0, flag(name), value, "must be a number of GB above 0",
                "such as 16, or leave it out")  # fmt: skip
    count, quality = options.num_gpus, options.quality
    require(count is None or count >= 1, "--num-gpus", count, "must be at least 1", "use 1, or 2 or more")
    require(quality is None or quality in QUALITIES, "--quality", quality, f"must be one of {', '.join(QUALITIES)}")


def check_one_device(options: Namespace) -> None:
    """Check that no flag is given that does nothing on one device.

    Raises:
        ValueError: one is; says which.
    """
    one, several = ", ".join(map(flag, FOR_ONE)), "is for several devices"
    fix = f"leave it out, or give --num-gpus, with --memory, and none of {one}"
    require(options.num_gpus in (None, 1), "--num-gpus", options.num_gpus, f"does not go with any of {one}", fix)
    for name in (*DEGREES, "memory"):
        require(getattr(options, name) is None, flag(name), getattr(options, name), several, fix)
    require(not options.fsdp, "--fsdp", True, several, fix)


def flag(name: str) -> str:
    """The flag of an option."""
    return f"--{name.replace('_', '-')}"


def one_device(options: Namespace) -> int:
    """Print what each stage needs on one device, and which options make the model fit.

    Raises:
        ValueError: a flag that is for several devices, or a model that cannot be planned.
    """
    from fastvideo.entrypoints.planning.choose import choose, nearest_way, ways
    from fastvideo.models.loader.repo import resolve_repo
    from fastvideo.platforms.cpu import CPUPlatform
    from fastvideo.utils import resolve

    check_one_device(options)
    on_cpu = options.gpu_memory is None
    args = FastVideoArgs.from_kwargs(options.model, precision=options.precision, device="cpu" if on_cpu else "auto",
                                     quality=options.quality or "exact")  # fmt: skip
    repo = resolve_repo(args.model)
    config = args.resolved_pipeline_config(resolve(repo.entry.pipeline_config)())
    explicit = {"precision"} if options.precision != "auto" else set()
    if args.quality != "exact":
        args, config, explicit = of_quality(repo, args, config, explicit)
    sampling = resolve(repo.entry.sampling)()
    if options.size is not None:
        sampling.update(**parse_size(options.size))
    if options.frames is not None:
        sampling.num_frames = options.frames
    sampling.check()
    ram = CPUPlatform().available_memory() if options.ram is None else options.ram * GB
    device_memory = int((options.gpu_memory or 0) * GB)
    found = ways(repo, args, config, sampling, explicit=explicit, on_cpu=on_cpu,
                 device_memory=device_memory, host_memory=int(ram))  # fmt: skip
    chosen, seen = choose(found)
    where = f"{ram / GB:.1f} GB of {'memory' if on_cpu else 'host memory'}"
    where = where if on_cpu else f"{options.gpu_memory:g} GB on the GPU and {where}"
    print(f"{repo.model}, {sampling.width}x{sampling.height}, {sampling.num_frames} frames, with {where}\n")
    rows = [("way to run it", *(() if on_cpu else ("GPU, GB",)), "host, GB", "seconds", "quality", "")]
    for way in seen:
        verdict = "chosen" if way is chosen else "does not fit"
        device = () if on_cpu else (f"{way.device / GB:.2f}",)
        rows.append((way.words, *device, f"{way.host / GB:.2f}", seconds_text(way.seconds), way.quality, verdict))
    print(table(rows))
    print("\ndB: PSNR to the video of whole weights in fp32, measured with shapes-t2v; see docs/quantization.md")
    if chosen is None:
        short = nearest_way(seen, on_cpu, device_memory, int(ram))
        print(f"\nnothing fits: {short}; use a smaller size, fewer frames, or a smaller model")
        return 1
    rows = [("stage", *(() if on_cpu else ("GPU, GB",)), "host, GB", "seconds", "TFLOP")]
    for stage in chosen.stages:
        device = () if on_cpu else (f"{stage.device / GB:.2f}",)
        work = f"{stage.flops / 1e12:.2f}" if stage.flops else "-"
        rows.append((stage.name, *device, f"{stage.host / GB:.2f}", seconds_text(stage.seconds), work))
    print(f"\n{chosen.words}:\n{table(rows)}")
    return 0


def of_quality(
    repo: "Repo", args: FastVideoArgs, config: "PipelineConfig", explicit: set[str]
) -> tuple[FastVideoArgs, "PipelineConfig", set[str]]:
    """`args`, `config` and `explicit` with the precision that `args.quality` picks; the log says which, or why none.

    Raises:
        ValueError: nobody measured the model, or its weights, by which a measurement is found, are not here.
    """
    from fastvideo.entrypoints.quality import loaded_for
    from fastvideo.models.loader.repo import weight_sources

    here = all(source.files.here(source.weight_names()) for source in weight_sources(repo))
    require(here, "--quality", args.quality, "what was measured is found by the weights, which are not here yet",
            "leave it out, or download the model")  # fmt: skip
    args, config, loaded = loaded_for(repo, args, config, explicit)
    return args, config, explicit | loaded.options.keys()


def seconds_text(seconds: float | None) -> str:
    """A time, or that it is not known."""
    return "-" if seconds is None else f"{seconds:.1f}"


def parse_size(size: str) -> dict[str, int]:
    """Width and height of "832x480".

    Raises:
        ValueError: it has another form.
    """
    parts = size.lower().split("x")
    ok = len(parts) == 2 and all(part.isdigit() for part in parts)
    require(ok, "--size", size, "must be WIDTHxHEIGHT", "such as 832x480")
    return {"width": int(parts[0]), "height": int(parts[1])}


def alternatives(
    numbers: ModelNumbers, args: FastVideoArgs, chosen: Layout, memory: int
) -> list[tuple[Layout | str, str]]:
    """The chosen layout and others on as many devices, each with the options that ask for it; for one that cannot work
    the reason, and its name."""
    count = args.num_gpus
    ways: list[dict[str, Any]] = [
        {}, {"cfg_size": 1}, {"ulysses_size": count}, {"ring_size": count}, {"tp_size": count},
        {"use_fsdp_inference": True},
    ]  # fmt: skip
    rows: list[tuple[Layout | str, str]] = [(chosen, "what you gave")]
    seen = {chosen}
    for options in ways:
        words = ", ".join(f"{name}={value}" for name, value in options.items()) or "nothing else"
        other = FastVideoArgs.from_kwargs(args.model, num_gpus=count, **options)
        try:
            layout = layout_of(numbers, other, memory=memory, vae=chosen.vae)
        except ValueError as error:
            rows.append((str(error), words))
            continue
        if layout not in seen:
            seen.add(layout)
            rows.append((layout, words))
        elif layout == chosen:
            rows[0] = (chosen, words)
    return rows
