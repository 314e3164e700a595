"""Wan models that were distilled to few steps, beside those of FastVideo."""

from fastvideo.configs.entries import ModelEntry

_BASIC = "fastvideo.pipelines.basic.wan"
_LAYOUTS = "fastvideo.configs.pipelines.wan"
_SAMPLING = "fastvideo.configs.sample.wan_few_steps"
_CONFIG = f"{_LAYOUTS}:WanT2VConfig"

MODELS: tuple[ModelEntry, ...] = (
    ModelEntry(
        name="wan2.1-rcm-t2v",
        description="A local folder of rCM: Wan 2.1 text to video in one to four steps, 1.3B and 14B parameters",
        pipeline_class="WanRCMPipeline",
        pipeline=f"{_BASIC}.wan_rcm_pipeline:WanRCMPipeline",
        pipeline_config=_CONFIG,
        sampling=f"{_SAMPLING}:WanRCMSampling",
        official_layout=f"{_LAYOUTS}:OFFICIAL_RCM_LAYOUT",
    ),
    ModelEntry(
        name="wan2.1-rcm-t2v-diffusers",
        description="A local Wan text-to-video repo whose scheduler is RCMScheduler",
        pipeline_class="WanPipeline",
        pipeline=f"{_BASIC}.wan_rcm_pipeline:WanRCMPipeline",
        pipeline_config=_CONFIG,
        sampling=f"{_SAMPLING}:WanRCMSampling",
        # what it lacks is said too, so that this counts for more than the sizes of a registered model
        signature=(
            ("scheduler._class_name", "RCMScheduler"),
            ("model_index.boundary_ratio", None),
            ("model_index.expand_timesteps", None),
        ),
    ),
    ModelEntry(
        name="wan2.2-rcm-i2v",
        description="A local folder of rCM: Wan 2.2 image to video in one to four steps, two transformers of 14B",
        pipeline_class="WanRCMImageToVideoPipeline",
        pipeline=f"{_BASIC}.wan_rcm_pipeline:WanRCMImageToVideoPipeline",
        pipeline_config=_CONFIG,
        sampling=f"{_SAMPLING}:WanRCMI2VSampling",
        official_layout=f"{_LAYOUTS}:OFFICIAL_22_RCM_LAYOUT",
    ),
    ModelEntry(
        name="self-forcing-t2v",
        description="A local folder of Self-Forcing: Wan 2.1 text to video chunk by chunk, in four steps each",
        pipeline_class="WanCausalDMDPipeline",
        pipeline=f"{_BASIC}.wan_causal_dmd_pipeline:WanCausalDMDPipeline",
        pipeline_config=f"{_LAYOUTS}:SFWanConfig",
        sampling="fastvideo.configs.sample.wan:SFWanSampling",
        signature=(("transformer._class_name", "WanModel"),),
        official_layout=f"{_LAYOUTS}:OFFICIAL_SELF_FORCING_LAYOUT",
        streams=True,
    ),
    ModelEntry(
        name="self-forcing-i2v",
        description="A local causal Wan repo whose first frame is a chunk of its own, and may be an image",
        pipeline_class="WanCausalDMDPipeline",
        pipeline=f"{_BASIC}.wan_causal_dmd_pipeline:WanCausalDMDPipeline",
        pipeline_config=f"{_LAYOUTS}:SFWanConfig",
        sampling=f"{_SAMPLING}:SFWanI2VSampling",
        signature=(("transformer.independent_first_frame", True),),
        classes=(("transformer", "WanTransformer3DModel", "CausalWanTransformer3DModel"),),
        streams=True,
    ),
)
