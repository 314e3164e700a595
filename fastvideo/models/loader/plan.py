"""Which layout a model gets on a number of devices, from its numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import ModelEntry
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.distributed.cost import StepShape
from fastvideo.distributed.layout import Layout
from fastvideo.fastvideo_args import DEGREES, FastVideoArgs
from fastvideo.models.dits.base import BaseDiT
from fastvideo.models.encoders.base import TextEncoder
from fastvideo.models.loader.component_loader import Blueprint, arch_of, blueprint
from fastvideo.models.loader.repo import Repo, weight_sources
from fastvideo.platforms import DTYPES, current_platform
from fastvideo.utils import require, resolve

SHARE_FOR_WEIGHTS = 0.6
"""Of a device's memory; the rest is for what is computed. Above it the weights are sharded."""


@dataclass(frozen=True, kw_only=True)
class ModelNumbers:
    """What the choice of a layout depends on."""

    heads: int
    """Of the full-sequence attention, what all transformers' have in common."""
    widths: Mapping[str, int]
    """What the tensor-parallel degree must divide, by "component.name"."""
    spread_bytes: int
    """Of the weights that tensor parallelism slices and FSDP shards."""
    whole_bytes: int
    """Of the weights that every rank holds."""
    guided: bool
    """Whether the model is sampled with guidance unless the user says otherwise."""

    def bytes_per_device(self, layout: Layout) -> int:
        """Of the weights on one device."""
        return self.spread_bytes // layout.tp // (layout.replicas if layout.fsdp else 1) + self.whole_bytes


def blueprints_of(repo: Repo) -> list[Blueprint]:
    """The components of `repo` that have weights, from its configs and the headers of its weight files.

    Raises:
        ValueError: a component is not registered, or its weights do not fit its config.
    """
    return [blueprint(source) for source in weight_sources(repo)]


def numbers_of(
    plans: Sequence[Blueprint], entry: ModelEntry, pipeline_config: PipelineConfig, args: FastVideoArgs
) -> ModelNumbers:
    """The numbers of a repo whose components are `plans`."""
    platform = current_platform(args.device)
    heads, widths, spread, whole = 0, dict[str, int](), 0, 0
    for plan in plans:
        source = plan.source
        dtype = platform.dtype(pipeline_config.precision_of(source.name))
        nbytes = plan.nbytes_in(dtype, args)
        if isinstance(plan.model, BaseDiT | TextEncoder):
            spread += nbytes
            widths |= {f"{source.name}.{name}": width for name, width in plan.arch.tensor_parallel_widths.items()}
        else:
            whole += nbytes
        if plan.arch.transformer_shape is not None:
            heads = math.gcd(heads, plan.arch.transformer_shape.heads)
    sampling: SamplingParam = resolve(entry.sampling)()
    return ModelNumbers(
        heads=heads, widths=widths, spread_bytes=spread, whole_bytes=whole, guided=sampling.guidance_scale > 1
    )


def step_shape(plans: Sequence[Blueprint], pipeline_config: PipelineConfig, sampling: SamplingParam) -> StepShape:
    """The sizes of a denoising step of a repo whose components are `plans`, for one video of `sampling`.

    Raises:
        ValueError: it has no diffusion transformer or no VAE.
    """
    shapes = [plan.arch.transformer_shape for plan in plans if plan.arch.transformer_shape is not None]
    scales = [plan.arch.latent_scale for plan in plans if plan.arch.latent_scale is not None]
    names = [plan.source.name for plan in plans]
    require(bool(shapes and scales), "components", names, "have no diffusion transformer with a VAE to plan for")
    shape, (time, space) = shapes[0], scales[0]
    grid = ((sampling.num_frames - 1) // time + 1, sampling.height // space, sampling.width // space)
    itemsize = DTYPES[pipeline_config.dit_precision].itemsize
    return StepShape(
        layers=shape.layers,
        hidden=shape.hidden,
        tokens=shape.tokens(grid),
        text=pipeline_config.text_len,
        patch=shape.channels * math.prod(shape.patch_size),
        latents=shape.channels * math.prod(grid),
        itemsize=itemsize,
        weight_bytes=sum(p.parameters for p in plans if isinstance(p.model, BaseDiT)) * itemsize,
    )


def frame_multiple(repo: Repo) -> int:
    """What height and width of a video of `repo` are multiples of: the pixels a side of a token."""
    multiple = 1
    for source in weight_sources(repo):
        if source.name.startswith(("transformer", "vae")):
            arch = arch_of(source)
            if arch.latent_scale is not None:
                multiple *= arch.latent_scale[1]
            elif arch.transformer_shape is not None and source.name == "transformer":
                multiple *= math.lcm(*arch.transformer_shape.patch_size[1:])
    return multiple


def choose_layout(repo: Repo, args: FastVideoArgs, pipeline_config: PipelineConfig) -> Layout:
    """The layout of `repo` on `args.num_gpus` devices; reads no weight.

    Raises:
        ValueError: as in `blueprints_of` and `layout_of`.
    """
    vae = pipeline_config.vae_sp
    platform = current_platform(args.device)
    args.check_combinations(platform.device_type, repo.entry.streams)
    if args.num_gpus == 1:
        require(not vae, "vae_sp", vae, "does nothing on one device", "leave it None")
        return Layout()
    numbers = numbers_of(blueprints_of(repo), repo.entry, pipeline_config, args)
    # the processes of one host share its memory
    memory = platform.total_memory() // (args.num_gpus if platform.device_type == "cpu" else 1)
    return layout_of(numbers, args, memory=memory, vae=vae is not False)


def layout_of(numbers: ModelNumbers, args: FastVideoArgs, *, memory: int, vae: bool = True) -> Layout:
    """What `args` say of the layout, completed.

    What is not said is chosen thus. Guidance takes two groups if the model is guided and the number is even: they
    exchange one prediction a step and nothing else. The rest shares the sequence: as many ranks exchange heads as the
    heads allow, the others form a ring. Slices of layers are for whoever asks. Weights that do not fit are sharded.

    Args:
        numbers: of the model.
        args: checked.
        memory: of a device, in bytes.
        vae: whether to split the decoder's work.

    Raises:
        ValueError: a degree that cannot work, or degrees whose product is not the number of devices.
    """
    count, tp = args.num_gpus, args.tp_size or 1
    for name, width in numbers.widths.items():
        require(width % tp == 0, "tp_size", tp, f"must divide {name}={width}", _alternative(numbers))
    sp = args.sp_size or _product(args.ulysses_size, args.ring_size)
    cfg = args.cfg_size
    if cfg is None:
        least = (args.ulysses_size or 1) * (args.ring_size or 1)
        two = numbers.guided and count % (2 * tp * least) == 0
        cfg = count // (tp * sp) if sp else 1 + two
        require(cfg <= 2, "num_gpus", count, f"tp_size={tp} and sp_size={sp} leave {cfg} groups for guidance's two",
                "raise sp_size, or leave it out")  # fmt: skip
        require(cfg == 1 or numbers.guided, "num_gpus", count,
                f"tp_size={tp} * sp_size={sp} is half of it, and the model has no guidance to split",
                f"use sp_size={count // tp}")  # fmt: skip
    sp = sp or count // (tp * cfg)
    said = ", ".join(f"{name}={getattr(args, name)}" for name in DEGREES if getattr(args, name) is not None)
    require(tp * sp * cfg == count, "num_gpus", count, f"is not the product of {said}",
            "leave one of them out, and it is chosen")  # fmt: skip
    ulysses, ring = _split_sequence(numbers, args, sp, numbers.heads // tp)
    plain = Layout(tp=tp, ulysses=ulysses, ring=ring, cfg=cfg, vae=vae)
    fsdp = args.use_fsdp_inference
    if not fsdp and plain.replicas > 1 and not args.quantized:
        fsdp = numbers.bytes_per_device(plain) > SHARE_FOR_WEIGHTS * memory
    return Layout(tp=tp, ulysses=ulysses, ring=ring, cfg=cfg, fsdp=fsdp, vae=vae)


def _split_sequence(numbers: ModelNumbers, args: FastVideoArgs, sp: int, heads: int) -> tuple[int, int]:
    """Ulysses and ring degree of `sp` ranks that hold `heads` heads each."""
    ulysses, ring = args.ulysses_size, args.ring_size
    if ulysses is None:
        ulysses = sp // ring if ring and sp % ring == 0 else math.gcd(heads, sp)
    ring = ring or sp // ulysses
    require(ulysses * ring == sp, "sp_size", sp, f"must be ulysses_size={ulysses} * ring_size={ring}")
    best = math.gcd(heads, sp)
    require(heads % ulysses == 0, "ulysses_size", ulysses, f"must divide the {heads} heads of the model's attention",
            f"use ulysses_size={best} and ring_size={sp // best}, or leave them out")  # fmt: skip
    return ulysses, ring


def _product(ulysses: int | None, ring: int | None) -> int | None:
    """The sequence-parallel degree that both say, where both are given."""
    return ulysses * ring if ulysses and ring else None


def _alternative(numbers: ModelNumbers) -> str:
    common = math.gcd(*numbers.widths.values())
    works = [str(size) for size in range(1, min(common, 64) + 1) if common % size == 0]
    return f"{', '.join(works)} work; or leave it out, and the tokens are shared instead"
