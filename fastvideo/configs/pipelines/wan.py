"""Pipeline configs of Wan 2.1 text-to-video, and the layout of the folders that its authors publish."""

from dataclasses import dataclass

from fastvideo.configs.official import OfficialComponent, OfficialLayout
from fastvideo.configs.pipelines.base import PipelineConfig

DMD_TIMESTEPS = (1000, 757, 522)
"""That the published models which are distilled by distribution matching run at."""

SELF_FORCING_TIMESTEPS = (1000, 750, 500, 250)
"""That the published models which make a video chunk by chunk run at, of a schedule that is not shifted yet."""


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


@dataclass(kw_only=True)
class WanI2V480PConfig(WanT2VConfig):
    """Wan2.1-I2V-14B-480P."""

    flow_shift: float | None = 3.0


@dataclass(kw_only=True)
class WanI2V720PConfig(WanT2VConfig):
    """Wan2.1-I2V-14B-720P."""

    flow_shift: float | None = 5.0


@dataclass(kw_only=True)
class WanFLF2VConfig(WanT2VConfig):
    """Wan2.1-FLF2V-14B-720P."""

    flow_shift: float | None = 16.0


@dataclass(kw_only=True)
class Wan22T2VConfig(WanT2VConfig):
    """Wan2.2-T2V-A14B."""

    flow_shift: float | None = 12.0


@dataclass(kw_only=True)
class Wan22I2VConfig(WanT2VConfig):
    """Wan2.2-I2V-A14B."""

    flow_shift: float | None = 5.0


@dataclass(kw_only=True)
class WanTI2VConfig(WanT2VConfig):
    """Wan2.2-TI2V-5B."""

    flow_shift: float | None = 5.0


@dataclass(kw_only=True)
class WanAnimateConfig(WanT2VConfig):
    """Wan2.2-Animate-14B."""

    flow_shift: float | None = 5.0


@dataclass(kw_only=True)
class FastWanConfig(WanT2VConfig):
    """FastWan models: the shift is of the noise schedule that they were distilled with."""

    flow_shift: float | None = 8.0


@dataclass(kw_only=True)
class SFWanConfig(WanT2VConfig):
    """SFWan models: the shift is of the noise schedule that they were distilled with."""

    flow_shift: float | None = 5.0


def _transformer(name: str, folder: str = "", class_name: str = "WanTransformer3DModel") -> OfficialComponent:
    prefix = f"{folder}/" if folder else ""
    return OfficialComponent(
        name=name, library="diffusers", class_name=class_name, config=f"{prefix}config.json",
        weights=f"{prefix}diffusion_pytorch_model.safetensors",
    )  # fmt: skip


def _euler(flow_shift: float) -> OfficialComponent:
    return OfficialComponent(
        name="scheduler", library="diffusers", class_name="FlowMatchEulerDiscreteScheduler",
        values=(("num_train_timesteps", 1000), ("shift", flow_shift)),
    )  # fmt: skip


def _rcm(sigma_max: float) -> OfficialComponent:
    return OfficialComponent(
        name="scheduler", library="diffusers", class_name="RCMScheduler",
        values=(("num_train_timesteps", 1000), ("sigma_max", sigma_max)),
    )  # fmt: skip


def _around(
    flow_shift: float, vae: str = "Wan2.1_VAE.pth", scheduler: OfficialComponent | None = None
) -> tuple[OfficialComponent, ...]:
    """What every official folder has beside transformers; the scheduler is UniPC if no other is given."""
    return (
        OfficialComponent(
            name="text_encoder", library="transformers", class_name="UMT5EncoderModel",
            weights="models_t5_umt5-xxl-enc-bf16.pth",
        ),
        OfficialComponent(name="vae", library="diffusers", class_name="AutoencoderKLWan", weights=vae),
        OfficialComponent(
            name="tokenizer", library="transformers", class_name="AutoTokenizer", folder="google/umt5-xxl",
        ),
        scheduler or OfficialComponent(
            name="scheduler", library="diffusers", class_name="UniPCMultistepScheduler",
            values=(
                ("prediction_type", "flow_prediction"), ("use_flow_sigmas", True), ("num_train_timesteps", 1000),
                ("flow_shift", flow_shift),
            ),
        ),
    )  # fmt: skip


_IMAGE_ENCODER = (
    OfficialComponent(
        name="image_encoder", library="transformers", class_name="CLIPVisionModel",
        weights="models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    ),
    OfficialComponent(name="image_processor", library="transformers", class_name="CLIPImageProcessor"),
)  # fmt: skip

OFFICIAL_LAYOUT = OfficialLayout(
    config_classes=("WanModel",),
    pipeline_class="WanPipeline",
    signature=(("model_type", "t2v"),),
    components=(_transformer("transformer"), *_around(3.0)),
)
"""A flat folder of Wan 2.1 text-to-video."""

OFFICIAL_I2V_LAYOUT = OfficialLayout(
    config_classes=("WanModel",),
    pipeline_class="WanImageToVideoPipeline",
    signature=(("model_type", "i2v"),),
    components=(_transformer("transformer"), *_IMAGE_ENCODER, *_around(3.0)),
)
"""A flat folder of Wan 2.1 image-to-video."""

OFFICIAL_FLF2V_LAYOUT = OfficialLayout(
    config_classes=("WanModel",),
    pipeline_class="WanImageToVideoPipeline",
    signature=(("model_type", "flf2v"),),
    components=(_transformer("transformer"), *_IMAGE_ENCODER, *_around(16.0)),
)
"""A flat folder of Wan 2.1 first-and-last-frame."""

_EXPERTS = (_transformer("transformer", "high_noise_model"), _transformer("transformer_2", "low_noise_model"))

OFFICIAL_22_T2V_LAYOUT = OfficialLayout(
    config_classes=("WanModel",),
    config_file="high_noise_model/config.json",
    pipeline_class="WanPipeline",
    signature=(("model_type", "t2v"),),
    components=(*_EXPERTS, *_around(12.0)),
    options=(("boundary_ratio", 0.875),),
)
"""A folder of Wan 2.2 text-to-video with two transformers."""

OFFICIAL_22_I2V_LAYOUT = OfficialLayout(
    config_classes=("WanModel",),
    config_file="high_noise_model/config.json",
    pipeline_class="WanImageToVideoPipeline",
    signature=(("model_type", "i2v"),),
    components=(*_EXPERTS, *_around(5.0)),
    options=(("boundary_ratio", 0.9),),
)
"""A folder of Wan 2.2 image-to-video with two transformers."""

OFFICIAL_TI2V_LAYOUT = OfficialLayout(
    config_classes=("WanModel",),
    pipeline_class="WanPipeline",
    signature=(("model_type", "ti2v"),),
    components=(_transformer("transformer"), *_around(5.0, vae="Wan2.2_VAE.pth")),
    options=(("expand_timesteps", True),),
)
"""A flat folder of Wan 2.2 text-and-image-to-video."""

OFFICIAL_VACE_LAYOUT = OfficialLayout(
    config_classes=("VaceWanModel",),
    pipeline_class="WanVACEPipeline",
    components=(_transformer("transformer", class_name="WanVACETransformer3DModel"), *_around(3.0)),
)
"""A flat folder of Wan 2.1 VACE."""

_FUN_CLASSES = ("WanModel", "WanTransformer3DModel")
_FUN_SHIFT = 5.0
_FUN_TRANSFORMER = _transformer("transformer", class_name="WanFunTransformer3DModel")
_FUN_EXPERTS = tuple(
    _transformer(name, folder, "WanFunTransformer3DModel")
    for name, folder in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model"))
)
_FUN_AROUND = _around(_FUN_SHIFT, scheduler=_euler(_FUN_SHIFT))
_FUN_AROUND_5B = _around(_FUN_SHIFT, vae="Wan2.2_VAE.pth", scheduler=_euler(_FUN_SHIFT))

OFFICIAL_FUN_INP_LAYOUT = OfficialLayout(
    config_classes=_FUN_CLASSES,
    pipeline_class="WanFunInpaintPipeline",
    signature=(("model_type", "i2v"), ("in_dim", 36)),
    components=(_FUN_TRANSFORMER, *_IMAGE_ENCODER, *_FUN_AROUND),
    named=True,
)
"""A flat folder of Wan 2.1 Fun InP as VideoX-Fun publishes it, whose config says what that of image to video says."""

OFFICIAL_SMALL_FUN_INP_LAYOUT = OfficialLayout(
    config_classes=_FUN_CLASSES,
    pipeline_class="WanFunInpaintPipeline",
    signature=(("model_type", "i2v"), ("in_dim", 36), ("dim", 1536)),
    components=(_FUN_TRANSFORMER, *_IMAGE_ENCODER, *_FUN_AROUND),
)
"""The same of 1.3B parameters, a size that there is of no other model with images."""

OFFICIAL_FUN_CONTROL_LAYOUT = OfficialLayout(
    config_classes=_FUN_CLASSES,
    pipeline_class="WanFunControlPipeline",
    signature=(("model_type", "i2v"), ("in_dim", 48)),
    components=(_FUN_TRANSFORMER, *_IMAGE_ENCODER, *_FUN_AROUND),
)
"""A flat folder of Wan 2.1 Fun Control."""

OFFICIAL_22_FUN_INP_LAYOUT = OfficialLayout(
    config_classes=_FUN_CLASSES,
    config_file="high_noise_model/config.json",
    pipeline_class="Wan2_2FunInpaintPipeline",
    signature=(("in_dim", 36),),
    components=(*_FUN_EXPERTS, *_FUN_AROUND),
    options=(("boundary_ratio", 0.9),),
    named=True,
)
"""A folder of Wan 2.2 Fun InP with two transformers, whose config says what that of image to video says."""

OFFICIAL_22_FUN_CONTROL_LAYOUT = OfficialLayout(
    config_classes=_FUN_CLASSES,
    config_file="high_noise_model/config.json",
    pipeline_class="Wan2_2FunControlPipeline",
    signature=(("in_dim", 52), ("out_dim", 16)),
    components=(*_FUN_EXPERTS, *_FUN_AROUND),
    options=(("boundary_ratio", 0.9),),
)
"""A folder of Wan 2.2 Fun Control with two transformers."""

OFFICIAL_TI2V_FUN_INP_LAYOUT = OfficialLayout(
    config_classes=_FUN_CLASSES,
    pipeline_class="Wan2_2FunInpaintPipeline",
    signature=(("in_dim", 100), ("out_dim", 48)),
    components=(_FUN_TRANSFORMER, *_FUN_AROUND_5B),
)
"""A flat folder of Wan 2.2 Fun InP, 5B parameters."""

OFFICIAL_TI2V_FUN_CONTROL_LAYOUT = OfficialLayout(
    config_classes=_FUN_CLASSES,
    pipeline_class="Wan2_2FunControlPipeline",
    signature=(("in_dim", 148), ("out_dim", 48)),
    components=(_FUN_TRANSFORMER, *_FUN_AROUND_5B),
)
"""A flat folder of Wan 2.2 Fun Control, 5B parameters."""

OFFICIAL_ANIMATE_LAYOUT = OfficialLayout(
    config_classes=("WanAnimateModel",),
    pipeline_class="WanAnimatePipeline",
    components=(
        _transformer("transformer", class_name="WanAnimateTransformer3DModel"), *_IMAGE_ENCODER, *_around(5.0),
    ),
)  # fmt: skip
"""A flat folder of Wan 2.2 Animate."""

OFFICIAL_RCM_LAYOUT = OfficialLayout(
    config_classes=("WanModel",),
    pipeline_class="WanRCMPipeline",
    signature=(("model_type", "t2v"),),
    components=(
        OfficialComponent(
            name="transformer", library="diffusers", class_name="WanTransformer3DModel", config="config.json",
            weights="*rCM*", prefixes=("net.",),
        ),
        *_around(1.0, scheduler=_rcm(80.0)),
    ),
    named=True,
)  # fmt: skip
"""A flat folder of Wan 2.1 text-to-video with a file of NVlabs/rcm, such as `rCM_Wan2.1_T2V_1.3B_480p.pt`."""

OFFICIAL_22_RCM_LAYOUT = OfficialLayout(
    config_classes=("WanModel",),
    config_file="high_noise_model/config.json",
    pipeline_class="WanRCMImageToVideoPipeline",
    signature=(("model_type", "i2v"),),
    components=(
        *(
            OfficialComponent(
                name=name, library="diffusers", class_name="WanTransformer3DModel",
                config=f"{kind}_noise_model/config.json", weights=f"*{kind}*rCM*", prefixes=("net.",),
            )
            for name, kind in (("transformer", "high"), ("transformer_2", "low"))
        ),
        *_around(1.0, scheduler=_rcm(200.0)),
    ),
    options=(("boundary_ratio", 0.9),),
    named=True,
)  # fmt: skip
"""A folder of Wan 2.2 image-to-video with two files of NVlabs/rcm, such as `Wan2.2-I2V-A14B-high-rCM-merged.pt`."""

OFFICIAL_SELF_FORCING_LAYOUT = OfficialLayout(
    config_classes=("WanModel",),
    pipeline_class="WanCausalDMDPipeline",
    signature=(("model_type", "t2v"),),
    components=(
        OfficialComponent(
            name="transformer", library="diffusers", class_name="CausalWanTransformer3DModel", config="config.json",
            weights="*self_forcing*", prefixes=("generator_ema.model.", "generator.model.", "model."),
        ),
        *_around(
            5.0,
            scheduler=OfficialComponent(
                name="scheduler", library="diffusers", class_name="SelfForcingFlowMatchScheduler",
                values=(("num_train_timesteps", 1000), ("shift", 5.0), ("sigma_min", 0.0), ("extra_one_step", True)),
            ),
        ),
    ),
    named=True,
)  # fmt: skip
"""A flat folder of Wan 2.1 text-to-video with a checkpoint of Self-Forcing, such as `self_forcing_dmd.pt`, of which the
averaged weights are meant."""
