"""`fastvideo verify`: a model's outputs beside those of the reference, `diffusers` and `transformers`, from the same
files.

Everything runs on the CPU, where fp32 is fp32. A component's error in fp32 is the largest difference over the largest
magnitude. In bf16 both round, so there the error of ours against the reference in fp32 is held against the error of the
reference in bf16, both as root mean squares. The whole pipeline is compared pixel by pixel.
"""

import dataclasses
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from fastvideo.attention.layer import DistributedAttention
from fastvideo.attention.selector import set_attention_backend
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.sample.base import VIDEOS, SamplingParam
from fastvideo.entrypoints.probes import PROBES, PROMPTS, SEED, Inputs, Outputs
from fastvideo.entrypoints.reference import check_packages, load_reference, quiet, reference_pipeline, reference_video
from fastvideo.entrypoints.video_generator import VideoGenerator
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import init_logger
from fastvideo.models.dits.base import BaseDiT
from fastvideo.models.loader.component_loader import (
    Blueprint,
    blueprint,
    check_components,
    load_component,
    load_tokenizer,
)
from fastvideo.models.loader.repo import ComponentSource, Repo, resolve_repo
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.stages import InputValidationStage
from fastvideo.platforms import current_platform
from fastvideo.utils import resolve

logger = init_logger(__name__)

FP32_BOUND = 1e-5
PIXEL_BOUND = 1 / 255
BF16_NOISE = 1.25
"""Two ways to round one sum differ by chance, most in a small model: by less than this ratio."""
BYTES_PER_PIXEL = 6 << 10
"""Of memory, that a video autoencoder 96 channels wide takes in fp32."""
STEPS = 3


class Clip(NamedTuple):
    """The size of the clips that are compared, in pixels and frames."""

    height: int
    width: int
    num_frames: int


CLIPS = (Clip(128, 128, 9), Clip(64, 96, 9), Clip(32, 48, 5))
"""The first that the memory holds is used."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison."""

    component: str
    precision: str
    error: float | None
    """None when it could not run."""
    bound: float | None
    note: str = ""
    """What was compared, or why nothing was."""

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound. What did not run has not passed, nor has an error of NaN."""
        return self.error is not None and self.bound is not None and self.error <= self.bound


def verify(model: str | Path, clip: Clip | None = None, revision: str | None = None) -> list[Row]:
    """Compare `model` with the reference, component by component and as a whole.

    The noise schedule is the repo's own on both sides. One side of one component is in memory at a time, apart from
    the comparison of the whole; what does not fit becomes a row that has not passed and says so.

    Args:
        model: what `VideoGenerator.from_pretrained` takes.
        clip: size of the clips; None for what the memory holds.
        revision: of a Hub repo.

    Raises:
        ImportError: a package of the `verify` extra is missing.
        ValueError: the repo cannot be loaded.
    """
    check_packages()
    repo = resolve_repo(model, revision)
    pipeline_class: type[ComposedPipelineBase] = resolve(repo.entry.pipeline)
    check_components(repo, pipeline_class._required_config_modules, pipeline_class._config_options)
    config: PipelineConfig = resolve(repo.entry.pipeline_config)()
    config = dataclasses.replace(config, flow_shift=None).with_precision("fp32")
    plans = [blueprint(source) for source in repo.components.values() if source.has_weights]
    clip = clip or fitting_clip(4 * max(plan.parameters for plan in plans))
    rows = []
    with quiet(), torch.no_grad():
        inputs = make_inputs(repo, plans, config, clip)
        for plan in plans:
            logger.info("verify: %s", plan.source.name)
            rows += component_rows(plan, inputs, clip)
        if reference_pipeline(repo) is None:
            logger.warning("the reference has no %s: the whole is not compared", repo.entry.pipeline_class)
            return rows
        logger.info("verify: the whole pipeline")
        rows.append(pipeline_row(repo, plans, config, clip, revision))
    return rows


def memory_of(clip: Clip) -> int:
    """Bytes to run two clips of this size."""
    return 2 * clip.height * clip.width * clip.num_frames * BYTES_PER_PIXEL


def fitting_clip(weights: int) -> Clip:
    """The largest of `CLIPS` that there is memory for beside `weights` bytes, or else the smallest."""
    free = current_platform("cpu").available_memory() - weights
    return next((clip for clip in CLIPS if memory_of(clip) <= free), CLIPS[-1])


def short_of_memory(parameters: int, clip: Clip) -> str:
    """Why `parameters` numbers in fp32 and a clip cannot be held; empty when they can."""
    needed, free = 4 * parameters + memory_of(clip), current_platform("cpu").available_memory()
    if needed <= free:
        return ""
    return f"not run: needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"


def make_inputs(repo: Repo, plans: list[Blueprint], config: PipelineConfig, clip: Clip) -> Inputs:
    """Random inputs of the shapes that the components take; the same each time."""
    archs: dict[str, Any] = {plan.source.name: plan.arch for plan in plans}
    dit, vae = archs["transformer"], archs["vae"]
    generator = torch.Generator("cpu").manual_seed(SEED)
    frames = (clip.num_frames - 1) // vae.scale_factor_temporal + 1
    height, width = clip.height // vae.scale_factor_spatial, clip.width // vae.scale_factor_spatial
    text = torch.randn(2, config.text_len, dit.text_dim, generator=generator)
    text[:, config.text_len // 2 :] = 0
    states = None
    if dit.image_dim is not None:
        # of its own, so that the other inputs are the same with and without an image encoder
        own = torch.Generator("cpu").manual_seed(SEED + 2)
        states = torch.randn(2, dit.pos_embed_seq_len or 257, dit.image_dim, generator=own)
    return Inputs(
        tokenizer=load_tokenizer(repo.components["tokenizer"]),
        text_len=config.text_len,
        pipeline_class=reference_pipeline(repo) or resolve("diffusers:WanPipeline"),
        video=torch.rand(2, 3, *_shape(clip), generator=generator) * 2 - 1,
        latents=torch.randn(2, vae.z_dim, frames, height, width, generator=generator),
        model_input=torch.randn(2, dit.in_channels, frames, height, width, generator=generator),
        image=torch.randint(256, (clip.height, clip.width, 3), generator=generator, dtype=torch.uint8),
        states=states,
        timestep=torch.rand(2, generator=generator) * 1000,
        text=text,
    )


def _shape(clip: Clip) -> tuple[int, int, int]:
    return clip.num_frames, clip.height, clip.width


def component_rows(plan: Blueprint, inputs: Inputs, clip: Clip) -> list[Row]:
    """Ours and the reference's of one component, in fp32 and in bf16."""
    source = plan.source
    note = short_of_memory(plan.parameters, clip)
    if note:
        return [Row(component=source.name, precision="fp32", error=None, bound=FP32_BOUND, note=note)]
    probe = PROBES[source.class_name]
    made: dict[torch.dtype, tuple[Outputs, Outputs]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        reference = probe.reference(load_reference(plan, dtype), inputs)
        made[dtype] = probe.ours(load_ours(source, dtype), inputs), reference
    ours, exact = made[torch.float32]
    our_bf16, reference_bf16 = made[torch.bfloat16]
    rows = []
    for name in exact:
        shape = "x".join(map(str, exact[name].shape))
        error = largest_difference(ours[name], exact[name]) / max(float(exact[name].abs().max()), 1e-30)
        what = source.name if name == "transformer" else name  # there may be two
        rows.append(Row(component=what, precision="fp32", error=error, bound=FP32_BOUND, note=shape))
        error, bound = (root_mean_square(rounded[name], exact[name]) for rounded in (our_bf16, reference_bf16))
        rows.append(Row(component=what, precision="bf16", error=error, bound=BF16_NOISE * bound, note=shape))
    return rows


def largest_difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest absolute difference; infinite when the shapes are not the same."""
    return float((ours.float() - reference.float()).abs().max()) if ours.shape == reference.shape else float("inf")


def root_mean_square(rounded: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the error of `rounded`, over that of `exact`."""
    if rounded.shape != exact.shape:
        return float("inf")
    square = (rounded.float() - exact).square().mean() / exact.square().mean().clamp(min=1e-30)
    return float(square.sqrt())


def load_ours(source: ComponentSource, dtype: torch.dtype) -> Any:
    """Our model of `source`.

    Raises:
        ValueError: it has weights that the reference would leave out.
    """
    plan = blueprint(source)
    if any(isinstance(module, DistributedAttention) and module.gated for module in plan.model.modules()):
        raise ValueError(
            f"component {source.name!r}: has the gate branch of video sparse attention, which the reference leaves "
            "out; there is nothing to compare it with"
        )
    model = load_component(plan, dtype=dtype)
    if isinstance(model, BaseDiT) and plan.arch.head_dim is not None:
        set_attention_backend(model, None, device="cpu", dtype=dtype, head_dim=plan.arch.head_dim)
    return model


def pipeline_row(repo: Repo, plans: list[Blueprint], config: PipelineConfig, clip: Clip, revision: str | None) -> Row:
    """A short clip from a prompt, by `VideoGenerator` and by the reference's pipeline."""
    note = short_of_memory(sum(plan.parameters for plan in plans), clip)
    if note:
        return Row(component="pipeline", precision="fp32", error=None, bound=PIXEL_BOUND, note=note)
    sampling: SamplingParam = resolve(repo.entry.sampling)()
    sampling.update(**clip._asdict(), num_inference_steps=STEPS, seed=SEED, save_video=False, return_frames=True)
    sampling.update(image_fit="stretch")
    if sampling.segment_frame_length is not None:
        sampling.update(segment_frame_length=clip.num_frames)
    shown = media_for(sampling, needed_by(repo, config))
    expected = reference_video(repo, plans, PROMPTS[0], sampling, config.text_len, shown)
    gc.collect()  # the reference's pipeline is in a cycle, and ours comes beside it
    made = VideoGenerator.from_pretrained(
        repo.model, revision=revision, device="cpu", precision="fp32", pipeline_config=config
    )
    with made as generator:
        result = generator.generate_video(PROMPTS[0], sampling, **shown)
    assert not isinstance(result, list)
    assert result.samples is not None
    return Row(
        component="pipeline",
        precision="fp32",
        error=largest_difference(result.samples, expected),
        bound=PIXEL_BOUND,
        note=f"{clip.num_frames} frames of {clip.width}x{clip.height}, {STEPS} steps",
    )


def needed_by(repo: Repo, config: PipelineConfig) -> tuple[str, ...]:
    """The media that a request must have. Of a model of any size that is for the pipeline to say, which knows the
    transformer, and not for the registry."""
    pipeline_class: type[ComposedPipelineBase] = resolve(repo.entry.pipeline)
    pipeline = pipeline_class.without_weights(repo, FastVideoArgs(model=repo.model, device="cpu"), config)
    (first,) = (stage for stage in pipeline.stages if isinstance(stage, InputValidationStage))
    return first.model.needs


def media_for(sampling: SamplingParam, needs: tuple[str, ...]) -> dict[str, Any]:
    """A random image or video for each of `needs`."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    size = (sampling.height, sampling.width, 3)

    def picture() -> Image.Image:
        return Image.fromarray(torch.randint(256, size, generator=generator, dtype=torch.uint8).numpy())

    return {name: [picture() for _ in range(sampling.num_frames)] if name in VIDEOS else picture() for name in needs}


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table whose heading is `HEADING`."""
    error, bound = ("-" if value is None else f"{value:.2e}" for value in (row.error, row.bound))
    return row.component, row.precision, error, bound, "pass" if row.passed else "FAIL", row.note


HEADING = ("component", "precision", "error", "bound", "result", "compared")
