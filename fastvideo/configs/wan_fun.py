"""The Wan models that VideoX-Fun publishes: from first and last frames (InP), and after a control video (Control)."""

from typing import Any

from fastvideo.configs.entries import ModelEntry

_BASIC = "fastvideo.pipelines.basic.wan"
_LAYOUTS = "fastvideo.configs.pipelines.wan"
_SAMPLING = "fastvideo.configs.sample.wan_fun"
_FUN: dict[str, Any] = {"pipeline_config": f"{_LAYOUTS}:WanT2VConfig"}

MODELS: tuple[ModelEntry, ...] = (
    ModelEntry(
        name="wan2.1-fun-1.3b-inp",
        description="Wan 2.1 Fun, first and last frame or neither to video, 1.3B parameters",
        model_ids=("alibaba-pai/Wan2.1-Fun-V1.1-1.3B-InP", "alibaba-pai/Wan2.1-Fun-1.3B-InP"),
        pipeline_class="WanFunInpaintPipeline",
        pipeline=f"{_BASIC}.wan_fun_pipeline:WanFunInpaintPipeline",
        sampling=f"{_SAMPLING}:WanFunInPSampling",
        signature=(("transformer.dim", 1536),),
        official_layout=f"{_LAYOUTS}:OFFICIAL_SMALL_FUN_INP_LAYOUT",
        **_FUN,
    ),
    ModelEntry(
        name="wan2.1-fun-inp",
        description="Wan 2.1 Fun, first and last frame or neither to video, 14B parameters or any other",
        model_ids=("alibaba-pai/Wan2.1-Fun-V1.1-14B-InP", "alibaba-pai/Wan2.1-Fun-14B-InP"),
        pipeline_class="WanFunInpaintPipeline",
        pipeline=f"{_BASIC}.wan_fun_pipeline:WanFunInpaintPipeline",
        sampling=f"{_SAMPLING}:WanFunInPSampling",
        official_layout=f"{_LAYOUTS}:OFFICIAL_FUN_INP_LAYOUT",
        **_FUN,
    ),
    ModelEntry(
        name="wan2.1-fun-control",
        description="Wan 2.1 Fun, after a control video and a reference image, 1.3B and 14B parameters",
        model_ids=(
            "alibaba-pai/Wan2.1-Fun-V1.1-1.3B-Control",
            "alibaba-pai/Wan2.1-Fun-V1.1-14B-Control",
            "alibaba-pai/Wan2.1-Fun-1.3B-Control",
            "alibaba-pai/Wan2.1-Fun-14B-Control",
        ),
        pipeline_class="WanFunControlPipeline",
        pipeline=f"{_BASIC}.wan_fun_pipeline:WanFunControlPipeline",
        sampling=f"{_SAMPLING}:WanFunControlSampling",
        official_layout=f"{_LAYOUTS}:OFFICIAL_FUN_CONTROL_LAYOUT",
        **_FUN,
    ),
    ModelEntry(
        name="wan2.1-fun-1.3b-inp-diffusers",
        description="Wan 2.1 Fun, first and maybe last frame to video, 1.3B parameters, as a Diffusers folder",
        model_ids=("weizhou03/Wan2.1-Fun-1.3B-InP-Diffusers",),
        pipeline_class="WanImageToVideoPipeline",
        pipeline=f"{_BASIC}.wan_i2v_pipeline:WanImageToVideoPipeline",
        sampling="fastvideo.configs.sample.wan:WanI2V480PSampling",
        signature=(("transformer.num_layers", 30), ("transformer.ffn_dim", 8960)),
        **_FUN,
    ),
    ModelEntry(
        name="wan2.1-fun-control-diffusers",
        description="Wan 2.1 Fun, after a control video, as a Diffusers folder",
        model_ids=("IRMChen/Wan2.1-Fun-1.3B-Control-Diffusers",),
        pipeline_class="WanVideoToVideoPipeline",
        pipeline=f"{_BASIC}.wan_fun_pipeline:WanFunControlPipeline",
        sampling=f"{_SAMPLING}:WanFunPlainControlSampling",
        components=("image_encoder",),
        classes=(("transformer", "WanTransformer3DModel", "WanFunTransformer3DModel"),),
        **_FUN,
    ),
    ModelEntry(
        name="wan2.2-fun-a14b-inp",
        description="Wan 2.2 Fun, first and last frame or neither to video, two transformers of 14B parameters",
        model_ids=("alibaba-pai/Wan2.2-Fun-A14B-InP",),
        pipeline_class="Wan2_2FunInpaintPipeline",
        pipeline=f"{_BASIC}.wan22_fun_pipeline:Wan22FunInpaintPipeline",
        sampling=f"{_SAMPLING}:Wan22FunInPSampling",
        components=("transformer_2",),
        official_layout=f"{_LAYOUTS}:OFFICIAL_22_FUN_INP_LAYOUT",
        **_FUN,
    ),
    ModelEntry(
        name="wan2.2-fun-a14b-control",
        description="Wan 2.2 Fun, after a control video and a reference image, two transformers of 14B parameters",
        model_ids=("alibaba-pai/Wan2.2-Fun-A14B-Control",),
        pipeline_class="Wan2_2FunControlPipeline",
        pipeline=f"{_BASIC}.wan22_fun_pipeline:Wan22FunControlPipeline",
        sampling=f"{_SAMPLING}:Wan22FunControlSampling",
        components=("transformer_2",),
        official_layout=f"{_LAYOUTS}:OFFICIAL_22_FUN_CONTROL_LAYOUT",
        **_FUN,
    ),
    ModelEntry(
        name="wan2.2-fun-5b-inp",
        description="Wan 2.2 Fun, first and last frame or neither to video, 5B parameters",
        model_ids=("alibaba-pai/Wan2.2-Fun-5B-InP",),
        pipeline_class="Wan2_2FunInpaintPipeline",
        pipeline=f"{_BASIC}.wan22_fun_pipeline:WanTI2VFunInpaintPipeline",
        sampling=f"{_SAMPLING}:WanTI2VFunInPSampling",
        official_layout=f"{_LAYOUTS}:OFFICIAL_TI2V_FUN_INP_LAYOUT",
        **_FUN,
    ),
    ModelEntry(
        name="wan2.2-fun-5b-control",
        description="Wan 2.2 Fun, after a control video and a reference image, 5B parameters",
        model_ids=("alibaba-pai/Wan2.2-Fun-5B-Control",),
        pipeline_class="Wan2_2FunControlPipeline",
        pipeline=f"{_BASIC}.wan22_fun_pipeline:WanTI2VFunControlPipeline",
        sampling=f"{_SAMPLING}:WanTI2VFunControlSampling",
        official_layout=f"{_LAYOUTS}:OFFICIAL_TI2V_FUN_CONTROL_LAYOUT",
        **_FUN,
    ),
)
