"""What a repo holds and where each weight goes, from its JSON files and the headers of its weight files alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import find_component
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.layers.quantization import check_layer
from fastvideo.models.loader.component_loader import blueprint
from fastvideo.models.loader.quantize import quantized_layers
from fastvideo.models.loader.repo import ComponentSource, resolve_repo
from fastvideo.platforms import DTYPES
from fastvideo.utils import resolve


@dataclass(frozen=True, kw_only=True)
class WeightReport:
    """One tensor of a checkpoint."""

    name: str
    """There."""
    file: str
    shape: tuple[int, ...]
    dtype: str
    target: str | None
    """Our parameter; None when the tensor is known and not loaded."""
    part: int = 0
    """Which piece of the parameter it is."""
    parts: int = 1
    """Of how many pieces, stacked along dimension 0."""


@dataclass(frozen=True, kw_only=True)
class ComponentReport:
    """One component of a repo. A scheduler or a tokenizer has no weights."""

    name: str
    library: str
    class_name: str
    """In `model_index.json`."""
    config_file: str | None
    """Relative to the repo; None when it has none."""
    model: str | None = None
    """Our class, as "module:Class"; None when it is the library's."""
    parameters: int = 0
    nbytes: int = 0
    """Of all tensors in the files."""
    loaded: int = 0
    """Bytes of the weights in memory, in the model's own precision or quantized."""
    dtypes: Mapping[str, int]
    """Tensors by dtype."""
    weight_files: tuple[str, ...] = ()
    weights: tuple[WeightReport, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RepoReport:
    """A repo."""

    model: str
    entry: str
    """Its name in the registry."""
    pipeline_class: str
    revision: str | None
    components: tuple[ComponentReport, ...]

    @property
    def parameters(self) -> int:
        """Of all components."""
        return sum(component.parameters for component in self.components)

    @property
    def nbytes(self) -> int:
        """Of all components."""
        return sum(component.nbytes for component in self.components)


def inspect_repo(
    model: str | Path,
    revision: str | None = None,
    *,
    quantization: str | None = None,
    text_encoder_quantization: str | None = None,
) -> RepoReport:
    """How the repo of `model` maps to components, and what they take in memory, quantized as the options of these names
    say. No weight is read; of a Hub repo none is fetched either.

    Raises:
        ValueError: what loading the repo would raise: a broken index, an unknown class, weights that do not fit, or of
            a size that cannot be quantized so.
    """
    args = FastVideoArgs.from_kwargs(
        model, quantization=quantization, text_encoder_quantization=text_encoder_quantization
    )
    repo = resolve_repo(model, revision)
    config: PipelineConfig = resolve(repo.entry.pipeline_config)()
    return RepoReport(
        model=repo.model,
        entry=repo.entry.name,
        pipeline_class=repo.entry.pipeline_class,
        revision=repo.revision,
        components=tuple(_component(source, args, config) for source in repo.components.values()),
    )


def _component(source: ComponentSource, args: FastVideoArgs, config: PipelineConfig) -> ComponentReport:
    if not source.has_weights:
        return ComponentReport(
            name=source.name,
            library=source.library,
            class_name=source.class_name,
            config_file=source.config_name,
            dtypes={},
        )
    plan = blueprint(source)
    method = args.quantization_of(source.name)
    if method is not None:
        for weight, layer in quantized_layers(plan.model, plan.arch).items():
            check_layer(method, args.quantization_option(source.name), weight, layer)
    weights = []
    dtypes: dict[str, int] = {}
    header = source.header()
    repeated = plan.mapping.repeated(header)
    for name, info in header.items():
        dtype = str(info.dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + 1
        target = None if name in repeated else plan.mapping(name)
        weights.append(
            WeightReport(
                name=name,
                file=info.file,
                shape=info.shape,
                dtype=dtype,
                target=target.name if target else None,
                part=target.part if target else 0,
                parts=target.parts if target else 1,
            )
        )
    return ComponentReport(
        name=source.name,
        library=source.library,
        class_name=source.class_name,
        config_file=source.config_name,
        model=find_component(source.class_name).model,
        parameters=plan.parameters,
        nbytes=sum(info.nbytes for info in header.values()),
        loaded=plan.nbytes_in(DTYPES[config.precision_of(source.name)], args),
        dtypes=dtypes,
        weight_files=source.weight_names(),
        weights=tuple(weights),
    )
