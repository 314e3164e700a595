"""The models of the Wan family, and the small one of the same architecture in the package."""

from typing import Any

from fastvideo.configs.entries import ModelEntry

SHIPPED_NAME = "shapes-t2v"
"""The model in the package."""

_WAN: dict[str, Any] = {
    "pipeline_class": "WanPipeline",
    "pipeline": "fastvideo.pipelines.basic.wan.wan_pipeline:WanPipeline",
    "official_layout": "fastvideo.configs.pipelines.wan:OFFICIAL_LAYOUT",
}
_WAN_I2V: dict[str, Any] = {
    "pipeline_class": "WanImageToVideoPipeline",
    "pipeline": "fastvideo.pipelines.basic.wan.wan_i2v_pipeline:WanImageToVideoPipeline",
    "official_layout": "fastvideo.configs.pipelines.wan:OFFICIAL_I2V_LAYOUT",
}

_BASIC = "fastvideo.pipelines.basic.wan"
_LAYOUTS = "fastvideo.configs.pipelines.wan"
_WAN22: dict[str, Any] = {
    "pipeline_class": "WanPipeline",
    "pipeline": f"{_BASIC}.wan22_pipeline:Wan22Pipeline",
    "pipeline_config": f"{_LAYOUTS}:Wan22T2VConfig",
    "sampling": "fastvideo.configs.sample.wan:Wan22T2VSampling",
    "official_layout": f"{_LAYOUTS}:OFFICIAL_22_T2V_LAYOUT",
    "components": ("transformer_2",),
}
_WAN22_I2V: dict[str, Any] = {
    "pipeline_class": "WanImageToVideoPipeline",
    "pipeline": f"{_BASIC}.wan22_pipeline:Wan22ImageToVideoPipeline",
    "pipeline_config": f"{_LAYOUTS}:Wan22I2VConfig",
    "sampling": "fastvideo.configs.sample.wan:Wan22I2VSampling",
    "official_layout": f"{_LAYOUTS}:OFFICIAL_22_I2V_LAYOUT",
    "components": ("transformer_2",),
}
_TI2V: dict[str, Any] = {
    "pipeline_class": "WanPipeline",
    "pipeline": f"{_BASIC}.wan_ti2v_pipeline:WanTI2VPipeline",
    "sampling": "fastvideo.configs.sample.wan:WanTI2VSampling",
    "official_layout": f"{_LAYOUTS}:OFFICIAL_TI2V_LAYOUT",
}
_FAST: dict[str, Any] = {
    "pipeline_class": "WanDMDPipeline",
    "pipeline": f"{_BASIC}.wan_dmd_pipeline:WanDMDPipeline",
    "pipeline_config": f"{_LAYOUTS}:FastWanConfig",
}
_VACE: dict[str, Any] = {
    "pipeline_class": "WanVACEPipeline",
    "pipeline": f"{_BASIC}.wan_vace_pipeline:WanVACEPipeline",
    "official_layout": f"{_LAYOUTS}:OFFICIAL_VACE_LAYOUT",
}
_ANIMATE: dict[str, Any] = {
    "pipeline_class": "WanAnimatePipeline",
    "pipeline": f"{_BASIC}.wan_animate_pipeline:WanAnimatePipeline",
    "sampling": "fastvideo.configs.sample.wan:WanAnimateSampling",
    "official_layout": f"{_LAYOUTS}:OFFICIAL_ANIMATE_LAYOUT",
}

MODELS: tuple[ModelEntry, ...] = (
    ModelEntry(
        name=SHIPPED_NAME,
        model_ids=(SHIPPED_NAME,),
        description="Shapes that move as the caption says; ships in the package",
        pipeline_config="fastvideo.configs.pipelines.wan:ShapesT2VConfig",
        sampling="fastvideo.configs.sample.wan:ShapesT2VSampling",
        signature=(("transformer.num_layers", 7), ("transformer.text_dim", 128)),
        **_WAN,
    ),
    ModelEntry(
        name="wan2.1-t2v-1.3b",
        description="Wan 2.1 text to video, 1.3B parameters, 480p",
        model_ids=("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B"),
        pipeline_config="fastvideo.configs.pipelines.wan:WanT2V480PConfig",
        sampling="fastvideo.configs.sample.wan:WanT2V480PSampling",
        signature=(("transformer.num_layers", 30), ("transformer.ffn_dim", 8960)),
        cache_coefficients="fastvideo.configs.sample.wan_coefficients:T2V_1_3B",
        **_WAN,
    ),
    ModelEntry(
        name="wan2.1-t2v-14b",
        description="Wan 2.1 text to video, 14B parameters, 480p and 720p",
        model_ids=("Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan-AI/Wan2.1-T2V-14B"),
        pipeline_config="fastvideo.configs.pipelines.wan:WanT2V720PConfig",
        sampling="fastvideo.configs.sample.wan:WanT2V720PSampling",
        signature=(("transformer.num_layers", 40), ("transformer.ffn_dim", 13824)),
        cache_coefficients="fastvideo.configs.sample.wan_coefficients:T2V_14B",
        **_WAN,
    ),
    ModelEntry(
        name="wan2.1-t2v",
        description="Any other local Wan 2.1 text-to-video repo",
        pipeline_config="fastvideo.configs.pipelines.wan:WanT2VConfig",
        sampling="fastvideo.configs.sample.wan:WanT2V480PSampling",
        **_WAN,
    ),
    ModelEntry(
        name="wan2.1-i2v-14b-480p",
        description="Wan 2.1 image to video, 14B parameters, 480p",
        model_ids=("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "Wan-AI/Wan2.1-I2V-14B-480P"),
        pipeline_config="fastvideo.configs.pipelines.wan:WanI2V480PConfig",
        sampling="fastvideo.configs.sample.wan:WanI2V480PSampling",
        signature=(("transformer.num_layers", 40), ("scheduler.flow_shift", 3.0)),
        cache_coefficients="fastvideo.configs.sample.wan_coefficients:I2V_14B_480P",
        **_WAN_I2V,
    ),
    ModelEntry(
        name="wan2.1-i2v-14b-720p",
        description="Wan 2.1 image to video, 14B parameters, 720p",
        model_ids=("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "Wan-AI/Wan2.1-I2V-14B-720P"),
        pipeline_config="fastvideo.configs.pipelines.wan:WanI2V720PConfig",
        sampling="fastvideo.configs.sample.wan:WanI2V720PSampling",
        signature=(("transformer.num_layers", 40), ("scheduler.flow_shift", 5.0)),
        cache_coefficients="fastvideo.configs.sample.wan_coefficients:I2V_14B_720P",
        **_WAN_I2V,
    ),
    ModelEntry(
        name="wan2.1-flf2v-14b",
        description="Wan 2.1 first and last frame to video, 14B parameters, 720p",
        model_ids=("Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", "Wan-AI/Wan2.1-FLF2V-14B-720P"),
        pipeline_config="fastvideo.configs.pipelines.wan:WanFLF2VConfig",
        sampling="fastvideo.configs.sample.wan:WanFLF2VSampling",
        signature=(("transformer.num_layers", 40), ("transformer.pos_embed_seq_len", 514)),
        **_WAN_I2V | {"official_layout": "fastvideo.configs.pipelines.wan:OFFICIAL_FLF2V_LAYOUT"},
    ),
    ModelEntry(
        name="wan2.1-i2v",
        description="Any other local Wan 2.1 image-to-video repo",
        pipeline_config="fastvideo.configs.pipelines.wan:WanT2VConfig",
        sampling="fastvideo.configs.sample.wan:WanAnyI2VSampling",
        **_WAN_I2V,
    ),
    ModelEntry(
        name="wan2.2-t2v-a14b",
        description="Wan 2.2 text to video, two transformers of 14B parameters, 480p and 720p",
        model_ids=("Wan-AI/Wan2.2-T2V-A14B-Diffusers", "Wan-AI/Wan2.2-T2V-A14B"),
        signature=(("transformer.num_layers", 40), ("model_index.boundary_ratio", 0.875)),
        **_WAN22,
    ),
    ModelEntry(
        name="wan2.2-t2v",
        description="Any other local Wan 2.2 text-to-video repo with two transformers",
        **_WAN22 | {"pipeline_config": f"{_LAYOUTS}:WanT2VConfig"},
    ),
    ModelEntry(
        name="wan2.2-i2v-a14b",
        description="Wan 2.2 image to video, two transformers of 14B parameters, 480p and 720p",
        model_ids=("Wan-AI/Wan2.2-I2V-A14B-Diffusers", "Wan-AI/Wan2.2-I2V-A14B"),
        signature=(("transformer.num_layers", 40), ("model_index.boundary_ratio", 0.9)),
        **_WAN22_I2V,
    ),
    ModelEntry(
        name="wan2.2-i2v",
        description="Any other local Wan 2.2 image-to-video repo with two transformers",
        **_WAN22_I2V | {"pipeline_config": f"{_LAYOUTS}:WanT2VConfig"},
    ),
    ModelEntry(
        name="shapes-ti2v",
        description="Shapes that move as the caption says, from a first frame; made by make shapes-ti2v",
        pipeline_config=f"{_LAYOUTS}:ShapesT2VConfig",
        signature=(
            ("model_index.expand_timesteps", True),
            ("transformer.num_layers", 7),
            ("transformer.text_dim", 128),
        ),
        **_TI2V | {"sampling": "fastvideo.configs.sample.wan:ShapesTI2VSampling"},
    ),
    ModelEntry(
        name="wan2.2-ti2v-5b",
        description="Wan 2.2 text and image to video, 5B parameters, 720p",
        model_ids=("Wan-AI/Wan2.2-TI2V-5B-Diffusers", "Wan-AI/Wan2.2-TI2V-5B"),
        pipeline_config=f"{_LAYOUTS}:WanTI2VConfig",
        signature=(
            ("model_index.expand_timesteps", True),
            ("transformer.num_layers", 30),
            ("transformer.ffn_dim", 14336),
        ),
        **_TI2V,
    ),
    ModelEntry(
        name="wan2.2-ti2v",
        description="Any other local Wan 2.2 text-and-image-to-video repo",
        pipeline_config=f"{_LAYOUTS}:WanT2VConfig",
        signature=(("model_index.expand_timesteps", True),),
        **_TI2V,
    ),
    ModelEntry(
        name="wan-v2v",
        description="A local Wan repo that is for video to video alone",
        pipeline_class="WanVideoToVideoPipeline",
        pipeline="fastvideo.pipelines.basic.wan.wan_pipeline:WanPipeline",
        pipeline_config=f"{_LAYOUTS}:WanT2VConfig",
        sampling="fastvideo.configs.sample.wan:WanV2VSampling",
    ),
    ModelEntry(
        name="fastwan2.1-t2v-1.3b",
        description="Wan 2.1 text to video in three steps, 1.3B parameters, 480p",
        model_ids=("FastVideo/FastWan2.1-T2V-1.3B-Diffusers",),
        sampling="fastvideo.configs.sample.wan:FastWanSampling",
        **_FAST,
    ),
    ModelEntry(
        name="fastwan2.2-ti2v-5b",
        description="Wan 2.2 text and image to video in three steps, 5B parameters, 720p",
        model_ids=("FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers",),
        sampling="fastvideo.configs.sample.wan_few_steps:WanTI2VDMDSampling",
        signature=(("model_index.expand_timesteps", True),),
        **_FAST | {"pipeline": f"{_BASIC}.wan_dmd_pipeline:WanTI2VDMDPipeline"},
    ),
    ModelEntry(
        name="sfwan2.1-t2v-1.3b",
        description="Wan 2.1 text to video chunk by chunk, in four steps each, 1.3B parameters, 480p",
        model_ids=("FastVideo/SFWan2.1-T2V-1.3B-Diffusers", "wlsaidhi/SFWan2.1-T2V-1.3B-Diffusers"),
        pipeline_class="WanCausalDMDPipeline",
        pipeline=f"{_BASIC}.wan_causal_dmd_pipeline:WanCausalDMDPipeline",
        pipeline_config=f"{_LAYOUTS}:SFWanConfig",
        sampling="fastvideo.configs.sample.wan:SFWanSampling",
        classes=(("transformer", "WanTransformer3DModel", "CausalWanTransformer3DModel"),),
        streams=True,
    ),
    ModelEntry(
        name="lucy-edit",
        description="Lucy Edit: a video changed as a text says, 5B parameters",
        model_ids=("decart-ai/Lucy-Edit-Dev",),
        pipeline_class="LucyEditPipeline",
        pipeline=f"{_BASIC}.wan_lucy_pipeline:LucyEditPipeline",
        pipeline_config=f"{_LAYOUTS}:WanT2VConfig",
        sampling="fastvideo.configs.sample.wan:LucyEditSampling",
    ),
    ModelEntry(
        name="wan2.1-vace-1.3b",
        description="Wan 2.1 VACE, steered by videos, masks and images, 1.3B parameters, 480p",
        model_ids=("Wan-AI/Wan2.1-VACE-1.3B-diffusers", "Wan-AI/Wan2.1-VACE-1.3B"),
        pipeline_config=f"{_LAYOUTS}:WanT2V480PConfig",
        sampling="fastvideo.configs.sample.wan:WanVACESampling",
        signature=(("transformer.num_layers", 30), ("transformer.ffn_dim", 8960)),
        **_VACE,
    ),
    ModelEntry(
        name="wan2.1-vace-14b",
        description="Wan 2.1 VACE, steered by videos, masks and images, 14B parameters, 720p",
        model_ids=("Wan-AI/Wan2.1-VACE-14B-diffusers", "Wan-AI/Wan2.1-VACE-14B"),
        pipeline_config=f"{_LAYOUTS}:WanT2V720PConfig",
        sampling="fastvideo.configs.sample.wan:WanVACE720PSampling",
        signature=(("transformer.num_layers", 40), ("transformer.ffn_dim", 13824)),
        **_VACE,
    ),
    ModelEntry(
        name="wan2.1-vace",
        description="Any other local Wan 2.1 VACE repo",
        pipeline_config=f"{_LAYOUTS}:WanT2VConfig",
        sampling="fastvideo.configs.sample.wan:WanVACESampling",
        **_VACE,
    ),
    ModelEntry(
        name="wan2.2-vace",
        description="A local Wan 2.2 VACE repo with two transformers",
        pipeline_config=f"{_LAYOUTS}:WanT2VConfig",
        sampling="fastvideo.configs.sample.wan:Wan22VACESampling",
        components=("transformer_2",),
        **_VACE | {"pipeline": f"{_BASIC}.wan22_pipeline:Wan22VACEPipeline", "official_layout": None},
    ),
    ModelEntry(
        name="wan2.2-animate-14b",
        description="Wan 2.2 Animate: somebody in an image moves as somebody in a video, 14B parameters, 720p",
        model_ids=("Wan-AI/Wan2.2-Animate-14B-Diffusers", "Wan-AI/Wan2.2-Animate-14B"),
        pipeline_config=f"{_LAYOUTS}:WanAnimateConfig",
        signature=(("transformer.num_layers", 40), ("transformer.ffn_dim", 13824)),
        **_ANIMATE,
    ),
    ModelEntry(
        name="wan2.2-animate",
        description="Any other local Wan 2.2 Animate repo",
        pipeline_config=f"{_LAYOUTS}:WanT2VConfig",
        **_ANIMATE,
    ),
)
