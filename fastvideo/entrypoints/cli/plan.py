"""`fastvideo plan`: how a model would share its work among devices, and what that costs. Reads no weight."""

from typing import Any

from jsonargparse import Namespace

from fastvideo.distributed.layout import Layout
from fastvideo.entrypoints.cli.report import table
from fastvideo.fastvideo_args import DEGREES, FastVideoArgs
from fastvideo.models.loader.plan import ModelNumbers, blueprints_of, layout_of, numbers_of, step_shape
from fastvideo.utils import require

GB = 1e9


def run(options: Namespace) -> int:
    """Print the layout that would be chosen, what each device holds and sends, and the same of others.

    Raises:
        ValueError: the layout asked for cannot work, or the model cannot be planned.
    """
    from fastvideo.distributed.cost import bytes_sent
    from fastvideo.models.loader.repo import resolve_repo
    from fastvideo.platforms import current_platform
    from fastvideo.utils import resolve

    count = options.num_gpus
    require(count > 1, "--num-gpus", count, "there is nothing to share on one device", "ask for 2 or more")
    asked = {name: getattr(options, name) for name in DEGREES if getattr(options, name) is not None}
    asked["use_fsdp_inference"] = options.fsdp
    args = FastVideoArgs.from_kwargs(options.model, num_gpus=count, precision=options.precision, **asked)
    repo = resolve_repo(args.model)
    config = args.resolved_pipeline_config(resolve(repo.entry.pipeline_config)())
    plans = blueprints_of(repo)
    numbers = numbers_of(plans, repo.entry, config, args)
    shape = step_shape(plans, config, resolve(repo.entry.sampling)())
    memory = options.memory * GB if options.memory else current_platform().total_memory()
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
