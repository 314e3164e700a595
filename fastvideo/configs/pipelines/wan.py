"""Pipeline configs of Wan 2.1 text-to-video, and the layout of the folders that its authors publish."""

from dataclasses import dataclass

from fastvideo.configs.official import OfficialComponent, OfficialLayout
from fastvideo.configs.pipelines.base import PipelineConfig


@dataclass(kw_only=True)
class WanT2VConfig(PipelineConfig):
    """Any text-to-video model of this family: the noise schedule is the repo's own."""


@dataclass(kw_only=True)
class WanT2V480PConfig(WanT2VConfig):
    """Wan2.1-T2V-1.3B."""

    flow_shift: float | None = 3.0


@dataclass(kw_only=True)
class WanT2V720PConfig(WanT2VConfig):
    """Wan2.1-T2V-14B."""

    flow_shift: float | None = 5.0


@dataclass(kw_only=True)
class ShapesT2VConfig(WanT2VConfig):
    """The model in the package: too small for bf16 to gain anything."""

    dit_precision: str = "fp32"
    text_encoder_precisions: tuple[str, ...] = ("fp32",)


OFFICIAL_LAYOUT = OfficialLayout(
    config_class="WanModel",
    pipeline_class="WanPipeline",
    components=(
        OfficialComponent(
            name="transformer", library="diffusers", class_name="WanTransformer3DModel", config="config.json",
            weights="diffusion_pytorch_model.safetensors",
        ),
        OfficialComponent(
            name="text_encoder", library="transformers", class_name="UMT5EncoderModel",
            weights="models_t5_umt5-xxl-enc-bf16.pth",
        ),
        OfficialComponent(name="vae", library="diffusers", class_name="AutoencoderKLWan", weights="Wan2.1_VAE.pth"),
        OfficialComponent(
            name="tokenizer", library="transformers", class_name="AutoTokenizer", folder="google/umt5-xxl",
        ),
        OfficialComponent(
            name="scheduler", library="diffusers", class_name="UniPCMultistepScheduler",
            values=(
                ("prediction_type", "flow_prediction"), ("use_flow_sigmas", True), ("num_train_timesteps", 1000),
                ("flow_shift", 3.0),
            ),
        ),
    ),
)  # fmt: skip
"""A flat folder of Wan 2.1 text-to-video."""
