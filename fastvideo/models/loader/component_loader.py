"""Builds the components of a repo: checks them all, then reads weights."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from fastvideo.configs.models.base import ArchConfig, ParamNamesMapping
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import find_component
from fastvideo.distributed.groups import ONE_RANK, Groups
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import init_logger
from fastvideo.models.encoders.base import ImageEncoder, TextEncoder
from fastvideo.models.encoders.image_processor import ImageProcessor
from fastvideo.models.encoders.tokenizer import plain_tokenizer
from fastvideo.models.loader.attention import choose_attention, compile_blocks
from fastvideo.models.loader.checkpoint import TensorInfo
from fastvideo.models.loader.compile_options import check_compile_options
from fastvideo.models.loader.gguf_source import names_of, official_shapes
from fastvideo.models.loader.offload import DiskHome, host_home, offload
from fastvideo.models.loader.quantize import bytes_of, check_quantized, quantize_weights
from fastvideo.models.loader.repo import ComponentSource, Repo
from fastvideo.models.loader.skeleton import skeleton
from fastvideo.models.loader.spread import spread_decoder, spread_sequence, spread_weights
from fastvideo.models.loader.weights import give_dtypes, load_into, plan_loading
from fastvideo.models.schedulers import build_scheduler, check_scheduler
from fastvideo.models.vaes.base import BaseVAE
from fastvideo.models.vaes.tiling import Tiling
from fastvideo.platforms import Platform, current_platform
from fastvideo.utils import nearest, require, resolve

logger = init_logger(__name__)

LIBRARIES = ("diffusers", "transformers")
TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast", "AutoTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes of `transformers` that `model_index.json` may name."""
IMAGE_PROCESSORS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")
"""Image processor classes of `transformers`, which do the same."""


@dataclass(frozen=True)
class Blueprint:
    """A component that is built on the meta device and whose weights are known to fit it."""

    source: ComponentSource
    arch: ArchConfig
    model: nn.Module
    mapping: ParamNamesMapping
    header: Mapping[str, TensorInfo]
    """Those tensors of its files that are loaded."""

    @property
    def nbytes(self) -> int:
        """Of its weights in their files."""
        return sum(info.nbytes for info in self.header.values())

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def nbytes_in(self, dtype: torch.dtype, args: FastVideoArgs) -> int:
        """Of its weights in memory, in `dtype` or quantized as `args` say, or as their file is."""
        if self.source.gguf:
            return sum(one.nbytes if one.packed else one.parameters * dtype.itemsize for one in self.header.values())
        return bytes_of(self.model, self.arch, dtype, args.quantization_of(self.source.name))


def arch_of(source: ComponentSource) -> ArchConfig:
    """The arch config of `source`; of an official checkpoint it takes the headers of the weight files.

    Raises:
        ValueError: the class is not registered, or the config is not one of it.
    """
    entry = find_component(source.class_name)
    what = f"component {source.name!r}"
    if source.config_name is None and not source.official:
        raise ValueError(f"{what}: {source.folder}/config.json is missing; download the repo again")
    arch_class: type[ArchConfig] = resolve(entry.arch)
    try:
        if source.official:
            return arch_class.from_official(source.config, official_shapes(source, arch_class))
        return arch_class.from_dict(source.config)
    except ValueError as error:
        raise ValueError(f"{what}, {source.config_name or source.weights}: {error}") from None


def blueprint(source: ComponentSource) -> Blueprint:
    """`source`, built and checked; reads the config and the headers of the weight files.

    Raises:
        ValueError: the class is not registered, the config is not one of it, or the weights do not fit.
    """
    entry = find_component(source.class_name)
    header = source.header()
    what = f"component {source.name!r}"
    arch = arch_of(source)
    if not source.official and not source.gguf:
        arch = arch.with_weights(header)
    mapping = names_of(source, arch)
    try:
        model: nn.Module = skeleton(lambda: resolve(entry.model)(arch))
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{what}, {source.config_name or source.weights}: no model can be built ({reason})") from None
    targets = plan_loading(model, header, mapping, what)
    return Blueprint(source, arch, model, mapping, {name: header[name] for name in targets})


def load_component(
    source: ComponentSource | Blueprint,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    report: Callable[[int], object] | None = None,
    groups: Groups = ONE_RANK,
    offload: bool = False,
    quantization: str | None = None,
) -> nn.Module:
    """The model of `source` with its weights, for inference.

    Args:
        source: a component that has weights, or its blueprint, whose model is then used up.
        dtype: of the weights, apart from those that the arch config keeps in fp32.
        device: where they go.
        report: is told the bytes read, after each tensor.
        groups: this rank's, which the model is spread over.
        offload: keep weights that are sharded over ranks in host memory.
        quantization: of the linear layers, a name in `QUANTIZATIONS`; each weight is quantized when it is read, so
            that one at a time is in memory as it was.

    Raises:
        ValueError: as in `blueprint`, or a weight file is truncated, or `torchao` is not installed.
    """
    if isinstance(source, ComponentSource):
        source.files.fetch(source.weight_names())
        source = blueprint(source)
    spread_weights(source.model, source.arch, groups, dtype=dtype, device=torch.device(device), offload=offload)
    finish = None if quantization is None else quantize_weights(source.model, source.arch, quantization)
    load_into(
        source.model,
        source.source.weight_files,
        source.mapping,
        dtype=dtype,
        keep_fp32=source.arch.keep_fp32,
        device=device,
        report=report,
        finish=finish,
        what=f"component {source.source.name!r}",
    )
    model = source.model.eval().requires_grad_(False)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())), "left without memory"
    spread_sequence(model, groups)
    spread_decoder(model, groups)
    return model


def load_tokenizer(source: ComponentSource) -> Any:
    """The `transformers` tokenizer of `source`, or one that is called alike, from the files of its folder alone.

    Raises:
        ValueError: the class is not known, or the folder holds no tokenizer of it.
    """
    check_tokenizer(source.class_name)
    folder = source.local_folder()
    try:
        plain = plain_tokenizer(source.class_name, folder)
        if plain is not None:
            return plain
        return resolve(f"transformers:{source.class_name}").from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what a broken file raises depends on the tokenizer
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{folder}: no {source.class_name} can be made of it ({reason}); download it again") from None


def check_tokenizer(class_name: str) -> None:
    """Raise a `ValueError` that lists the choices unless `class_name` is in `TOKENIZERS`."""
    _check_class("tokenizer", class_name, TOKENIZERS)


def _check_class(kind: str, class_name: str, known: Collection[str]) -> None:
    if class_name not in known:
        close = nearest(class_name, known)
        raise ValueError(
            f"{kind} class {class_name!r}: not known; "
            + (f"did you mean {close!r}? " if close else "")
            + f"known are {', '.join(known)}"
        )


def check_components(repo: Repo, required: Collection[str], options: Collection[str] = ()) -> None:
    """Check that `repo` has the components in `required`, all of classes that are known, and nothing beside.

    Args:
        repo: a resolved repo.
        required: names of components.
        options: what else in `model_index.json` the pipeline heeds.

    Raises:
        ValueError: a component that is missing, or of a class that nobody registered; or something in the index that
            the pipeline would ignore.
    """
    pipeline = repo.entry.pipeline_class
    for name in required:
        if name not in repo.components:
            raise ValueError(
                f"component {name!r}: {pipeline} needs it, and model_index.json of {repo.model} lists only "
                f"{', '.join(sorted(repo.components)) or 'none'}; download the repo again"
            )
    for name, source in repo.components.items():
        if name not in required:
            raise ValueError(
                f"component {name!r} ({source.class_name}): model_index.json of {repo.model} lists it, and {pipeline} "
                "would ignore it; this version does not support the model"
            )
        if source.library not in LIBRARIES:
            raise ValueError(f"component {name!r}: library {source.library!r} must be one of {', '.join(LIBRARIES)}")
        if name.startswith("scheduler"):
            check_scheduler(source.class_name)
        elif name.startswith("tokenizer"):
            check_tokenizer(source.class_name)
        elif name.startswith("image_processor"):
            _check_class("image processor", source.class_name, IMAGE_PROCESSORS)
        else:
            find_component(source.class_name)
    for name, value in repo.model_index.items():
        if not name.startswith("_") and name not in options:
            raise ValueError(
                f"{name}={value!r}: model_index.json of {repo.model} asks for it, and {pipeline} would ignore it; "
                "this version does not support the model"
            )


def load_components(
    repo: Repo,
    required: Collection[str],
    args: FastVideoArgs,
    pipeline_config: PipelineConfig,
    *,
    progress: bool = True,
    options: Collection[str] = (),
    groups: Groups = ONE_RANK,
) -> dict[str, object]:
    """The components in `required`: models with weights on their device, tokenizers, image processors, schedulers.

    Encoders get what prepares their input. All is checked before a weight is read.

    Args:
        repo: a resolved repo.
        required: names of components.
        args: device, attention backend, compilation.
        pipeline_config: precisions, text length, flow shift.
        progress: show a bar of the bytes read, if standard error is a terminal.
        options: what else in `model_index.json` the pipeline heeds.
        groups: this rank's, which the models are spread over.

    Raises:
        ValueError: as in `check_components` and `blueprint`, or the device does not compute in a precision.
    """
    check_components(repo, required, options)
    platform = current_platform(args.device)
    sources = [repo.components[name] for name in required]
    models = [source for source in sources if source.has_weights]
    dtypes = {source.name: platform.dtype(pipeline_config.precision_of(source.name)) for source in models}
    loaded: dict[str, object] = {x.name: _without_weights(x, pipeline_config) for x in sources if not x.has_weights}
    if groups.layout.world == 1:
        args.check_components(dtypes)
    check_compile_options(args)
    for source in models:
        source.files.fetch(source.weight_names())
    blueprints = [blueprint(source) for source in models]
    for plan in blueprints:
        choose_attention(plan.model, plan.arch, dtypes[plan.source.name], args, platform, groups)
        if isinstance(plan.model, BaseVAE) and pipeline_config.vae_tiling:
            plan.model.cut(tiling_of(plan.arch, pipeline_config))
        check_quantized(plan.source.name, plan.model, plan.arch, args, pipeline_config)
    if groups.layout.world == 1:
        _warn_if_short_of_memory(blueprints, dtypes, args, platform)
    with tqdm(
        total=sum(plan.nbytes for plan in blueprints), unit="B", unit_scale=True, desc="Loading", leave=False,
        disable=None if progress else True,
    ) as bar:  # fmt: skip
        for plan in blueprints:
            name = plan.source.name
            bar.set_postfix_str(name, refresh=False)
            model = _load(plan, dtypes[name], platform.device, args, groups, bar.update)
            compile_blocks(model, args)
            if isinstance(model, TextEncoder):
                _give_tokenizer(model, name, loaded, pipeline_config)
            if isinstance(model, ImageEncoder):
                model.processor = _companion(name, "image_encoder", "image_processor", loaded)
            loaded[name] = model
    return loaded


def bare_components(repo: Repo, required: Collection[str], pipeline_config: PipelineConfig) -> dict[str, object]:
    """The components in `required` as `load_components` gives them, their models on the meta device: no weight is read.

    Raises:
        ValueError: as in `blueprint`.
    """
    sources = [repo.components[name] for name in required]
    return {
        source.name: blueprint(source).model if source.has_weights else _without_weights(source, pipeline_config)
        for source in sources
    }


def _without_weights(source: ComponentSource, pipeline_config: PipelineConfig) -> Any:
    if source.name.startswith("tokenizer"):
        return load_tokenizer(source)
    if source.name.startswith("image_processor"):
        try:
            return ImageProcessor.from_dict(source.config)
        except ValueError as error:
            raise ValueError(f"component {source.name!r}, {source.config_name}: {error}") from None
    return build_scheduler(source.class_name, source.config, pipeline_config.flow_shift)


def _load(
    plan: Blueprint,
    dtype: torch.dtype,
    device: torch.device,
    args: FastVideoArgs,
    groups: Groups,
    report: Callable[[int], object],
) -> nn.Module:
    """The model of `plan`, with its weights on the device or at home; those that stay on disk are not read now."""
    name, model = plan.source.name, plan.model
    home, by_layer = args.home(name), args.by_layer(name)
    if args.use_fsdp_inference or home == "device":
        return load_component(
            plan, dtype=dtype, device=device, report=report, groups=groups, offload=home == "host",
            quantization=args.quantization_of(name),
        )  # fmt: skip
    if home == "host":
        load_component(plan, dtype=dtype, report=report)
        offload(model, host_home(model, args.pin_cpu_memory), device, by_layer=by_layer)
        return model
    give_dtypes(model, dtype, plan.arch.keep_fp32)
    disk = DiskHome(model, plan.source.weight_files, plan.mapping, f"component {name!r}")
    offload(model, disk, device, by_layer=by_layer)
    report(plan.nbytes)
    return model.eval().requires_grad_(False)


def tiling_of(arch: ArchConfig, pipeline_config: PipelineConfig) -> Tiling:
    """The tiles of a VAE.

    Raises:
        ValueError: they do not begin and end at whole latents.
    """
    size = pipeline_config.vae_tile_size
    assert arch.latent_scale is not None, "a VAE says what its latents stand for"
    unit = 4 * arch.latent_scale[1]
    fit = max(unit, round(size / unit) * unit)
    require(size % unit == 0, "vae_tile_size", size, f"must be a multiple of {unit} for this VAE", f"try {fit}")
    return Tiling(size, size * 3 // 4)


def _give_tokenizer(model: TextEncoder, name: str, loaded: dict[str, object], pipeline_config: PipelineConfig) -> None:
    model.tokenizer = _companion(name, "text_encoder", "tokenizer", loaded)
    model.text_len = pipeline_config.text_len


def _companion(name: str, kind: str, other_kind: str, loaded: dict[str, object]) -> Any:
    """The component of `other_kind` that belongs to component `name` of `kind`, and has the same number."""
    other = name.replace(kind, other_kind, 1)
    if other not in loaded:
        raise ValueError(f"component {name!r}: needs component {other!r}, which the pipeline does not ask for")
    return loaded[other]


def _warn_if_short_of_memory(
    blueprints: list[Blueprint], dtypes: dict[str, torch.dtype], args: FastVideoArgs, platform: Platform
) -> None:
    there = [plan for plan in blueprints if args.home(plan.source.name) == "device"]
    needed = sum(plan.nbytes_in(dtypes[plan.source.name], args) for plan in there)
    free = platform.available_memory()
    if needed > free:
        logger.warning(
            "the weights take %.1f GB of memory and %.1f GB are free on %s: close other programs, or use "
            "precision='bf16' or a smaller model", needed / 1e9, free / 1e9, platform.device_type,
        )  # fmt: skip
