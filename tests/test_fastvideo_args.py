"""`FastVideoArgs`: what is unknown, wrong or not available is refused, with what to do."""

from pathlib import Path
from typing import Any

import pytest

from fastvideo.configs.pipelines import PipelineConfig
from fastvideo.fastvideo_args import FastVideoArgs

KEYWORDS_IN_USE = (
    "num_gpus tp_size sp_size revision distributed_executor_backend use_fsdp_inference dit_cpu_offload "
    "dit_layerwise_offload text_encoder_cpu_offload image_encoder_cpu_offload vae_cpu_offload pin_cpu_memory "
    "enable_torch_compile torch_compile_kwargs pipeline_config attention_backend VSA_sparsity lora_path lora_nickname "
    "dist_timeout precision device STA_window STA_tile_size mask_strategy_file_path moba_config "
    "ulysses_size ring_size cfg_size disk_offload quantization text_encoder_quantization "
    "transformer_path transformer_2_path text_encoder_path memory quality"
)


def test_every_keyword_in_use_is_known() -> None:
    assert set(KEYWORDS_IN_USE.split()) | {"model"} == set(FastVideoArgs.field_names())


def test_defaults_pass_the_check() -> None:
    args = FastVideoArgs.from_kwargs("shapes-t2v")
    assert (args.model, args.precision, args.device, args.num_gpus) == ("shapes-t2v", "auto", "auto", 1)


def test_what_scripts_pass_to_run_on_one_device_is_accepted() -> None:
    FastVideoArgs.from_kwargs(
        "shapes-t2v", num_gpus=1, tp_size=1, sp_size=1, distributed_executor_backend="mp", use_fsdp_inference=False,
        dit_cpu_offload=False, vae_cpu_offload=False, text_encoder_cpu_offload=False, pin_cpu_memory=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keyword", "nearest"),
    [("num_gpu", "num_gpus"), ("attention_backed", "attention_backend"), ("Precision", "precision")],
)
def test_an_unknown_keyword_names_the_nearest(keyword: str, nearest: str) -> None:
    message = f"'{keyword}': unknown keyword of from_pretrained; did you mean '{nearest}'"
    with pytest.raises(ValueError, match=message):
        FastVideoArgs.from_kwargs("shapes-t2v", **{keyword: 1})


REFUSED: list[tuple[str, Any, str]] = [
    ("num_gpus", 0, "at least 1"),
    ("num_gpus", 2.5, "whole number"),
    ("tp_size", 2, "must divide num_gpus=1; set num_gpus=2 or a multiple"),
    ("sp_size", 4, "must divide num_gpus=1; set num_gpus=4 or a multiple"),
    ("ulysses_size", 3, "must divide num_gpus=1"),
    ("ring_size", 0, "at least 1"),
    ("quality", "best", "must be one of exact, high, fast"),
    ("cfg_size", 2, "must divide num_gpus=1"),
    ("distributed_executor_backend", "ray", "leave it 'mp'"),
    ("distributed_executor_backend", "threads", "must be 'mp' or 'ray'"),
    ("dist_timeout", 600, "leave it None"),
    ("use_fsdp_inference", True, "leave it False"),
    ("dit_layerwise_offload", 1, "must be True or False"),
    ("vae_cpu_offload", None, "must be True or False"),
    ("pin_cpu_memory", True, "does nothing without offloading to the host; set dit_cpu_offload=True or the like"),
    ("memory", "all", "must be 'auto' or None"),
    ("disk_offload", "vae", "must be True, False, or names of components"),
    ("disk_offload", ("vae", 2), "must be True, False, or names of components"),
    ("quantization", "int4", "must be one of int8, int8_dynamic, fp8, fp8_dynamic, nf4, or None"),
    ("text_encoder_quantization", True, "must be one of int8"),
    ("VSA_sparsity", 0.5, "does nothing with attention_backend='auto'; set attention_backend='VIDEO_SPARSE_ATTN'"),
    ("STA_window", (3, 3, 3), "does nothing with attention_backend='auto'; set attention_backend='SLIDING_TILE_ATTN'"),
    ("STA_tile_size", [4, 4, 4], "does nothing with attention_backend='auto'; set attention_backend='SLIDING_TILE_A"),
    ("mask_strategy_file_path", "sta.json", "set attention_backend='SLIDING_TILE_ATTN'"),
    ("moba_config", {"st_topk": 3}, "does nothing with attention_backend='auto'; set attention_backend='VMOBA_ATTN'"),
    ("lora_path", 3, "must be a path, or a list of paths"),
    ("lora_path", ["a", ""], "must be a path, or a list of paths"),
    ("lora_path", "a.safetensors:inf", "its strength must be a finite number; as in a.safetensors:0.8"),
    ("lora_path", ["x/a.safetensors", "y/a.safetensors:2"], "has the nickname 'a', as has x/a.safetensors"),
    ("lora_nickname", "anime", "and there is none; set lora_path, or leave it out"),
    ("lora_nickname", "", "must be a name"),
    ("torch_compile_kwargs", {"mode": "max-autotune"}, "set enable_torch_compile=True"),
    ("torch_compile_kwargs", "max-autotune", "must be a dict"),
    ("torch_compile_kwargs", {"options": "freezing"}, "options must be a dict"),
    ("enable_torch_compile", "yes", "must be True or False"),
    ("precision", "float16", "must be one of auto, fp32, bf16, fp16"),
    ("device", "tpu", "must be one of auto, cuda, cpu, mps"),
    ("pipeline_config", {"flow_shift": 3}, "must be a PipelineConfig"),
    ("pipeline_config", PipelineConfig(vae_tile_size=128), "vae_tile_size=128: does nothing without vae_tiling"),
]


def test_several_devices() -> None:
    args = FastVideoArgs.from_kwargs("shapes-t2v", num_gpus=8, tp_size=2, sp_size=2, dist_timeout=600)
    assert (args.num_gpus, args.tp_size, args.sp_size, args.cfg_size) == (8, 2, 2, None)
    FastVideoArgs.from_kwargs("shapes-t2v", num_gpus=2, distributed_executor_backend="ray")
    FastVideoArgs.from_kwargs("shapes-t2v", num_gpus=2, use_fsdp_inference=True, dit_cpu_offload=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_gpus": 4, "tp_size": 3}, "tp_size=3: must divide num_gpus=4"),
        ({"num_gpus": 4, "tp_size": 2, "sp_size": 4}, "num_gpus=4: must be a multiple of tp_size * sp_size * cfg"),
        ({"num_gpus": 4, "cfg_size": 4}, "cfg_size=4: must be 1 or 2: guidance has two predictions"),
        ({"num_gpus": 2, "dist_timeout": 0}, "dist_timeout=0: must be more than 0 seconds"),
        ({"num_gpus": 2, "dit_cpu_offload": True}, "dit_cpu_offload=True: does not go with num_gpus=2: several dev"),
        (
            {"num_gpus": 2, "use_fsdp_inference": True, "dit_cpu_offload": True, "enable_torch_compile": True},
            "enable_torch_compile=True: has not been shown to go with shards in host memory; leave it or dit_cpu",
        ),
    ],
)  # fmt: skip
def test_what_several_devices_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        FastVideoArgs.from_kwargs("shapes-t2v", **options)
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_what_would_do_nothing_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        FastVideoArgs.from_kwargs("shapes-t2v", **{name: value})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    if not isinstance(value, PipelineConfig):
        assert str(error.value).startswith(f"{name}={value!r}: ")


def test_no_model() -> None:
    with pytest.raises(ValueError, match="model='': must be a Hub id, a local folder"):
        FastVideoArgs.from_kwargs("")


def test_the_pipeline_config_in_use() -> None:
    own = FastVideoArgs.from_kwargs("Wan-AI/Wan2.1-T2V-14B-Diffusers").resolved_pipeline_config()
    assert (own.flow_shift, own.dit_precision) == (5.0, "bf16")
    given = PipelineConfig(flow_shift=7.0)
    args = FastVideoArgs.from_kwargs("Wan-AI/Wan2.1-T2V-14B-Diffusers", pipeline_config=given, precision="fp32")
    config = args.resolved_pipeline_config()
    assert (config.flow_shift, config.dit_precision, config.text_encoder_precisions) == (7.0, "fp32", ("fp32",))
    assert given.dit_precision == "bf16"


def test_the_argument_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FastVideoArgs(model="m").resolved_attention_backend() == "auto"
    monkeypatch.setenv("FASTVIDEO_ATTENTION_BACKEND", "FLASH_ATTN")
    assert FastVideoArgs(model="m").resolved_attention_backend() == "FLASH_ATTN"
    assert FastVideoArgs(model="m", attention_backend="TORCH_SDPA").resolved_attention_backend() == "TORCH_SDPA"


def test_a_variable_that_would_do_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVIDEO_CFG_GATE_STEPS", "5")
    with pytest.raises(
        ValueError, match=r"FASTVIDEO_CFG_GATE_STEPS='5': no such variable; unset it, there are FASTVIDEO_ATT"
    ):
        FastVideoArgs.from_kwargs("shapes-t2v")


def test_loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:0.5").mkdir()

    def given(*paths: str, **options: str) -> dict[str, tuple[str, float]]:
        return FastVideoArgs.from_kwargs("shapes-t2v", lora_path=list(paths), **options).loras()

    assert given() == {}
    assert given("a.safetensors") == {"default": ("a.safetensors", 1)}
    assert given("a.safetensors:-0.5", lora_nickname="anime") == {"anime": ("a.safetensors", -0.5)}
    assert given("x/a.safetensors", "me/b:0.25") == {"a": ("x/a.safetensors", 1), "b": ("me/b", 0.25)}
    assert given("odd:0.5", "C:style") == {"odd:0": ("odd:0.5", 1), "C:style": ("C:style", 1)}
    assert FastVideoArgs.from_kwargs("shapes-t2v", lora_path="a:2").loras() == {"default": ("a", 2)}
    with pytest.raises(
        ValueError, match="lora_nickname='anime': names the one LoRA of lora_path, and there are several"
    ):
        given("a", "b", lora_nickname="anime")


def test_a_bad_value_of_a_variable_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("half", "5", "-0.1"):
        monkeypatch.setenv("FASTVIDEO_CFG_GATE_STEP", bad)
        with pytest.raises(ValueError, match=f"FASTVIDEO_CFG_GATE_STEP='{bad}': must be a number from 0 to 1"):
            FastVideoArgs.from_kwargs("shapes-t2v")
    monkeypatch.setenv("FASTVIDEO_CFG_GATE_STEP", "0.5")
    FastVideoArgs.from_kwargs("shapes-t2v")
