"""`PipelineConfig`: defaults, precision, checks."""

from pathlib import Path
from typing import Any

import pytest

from fastvideo.configs.pipelines import PipelineConfig


@pytest.mark.parametrize(
    ("model", "shift", "dit", "text"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 3.0, "bf16", ("bf16",)),
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers", 5.0, "bf16", ("bf16",)),
        ("Wan-AI/Wan2.1-T2V-14B", 5.0, "bf16", ("bf16",)),
        ("shapes-t2v", None, "fp32", ("fp32",)),
    ],
)
def test_defaults(model: str, shift: float | None, dit: str, text: tuple[str, ...]) -> None:
    config = PipelineConfig.from_pretrained(model)
    assert (config.flow_shift, config.dit_precision, config.text_encoder_precisions) == (shift, dit, text)
    assert (config.vae_precision, config.text_len) == ("fp32", 512)
    config.check()


def test_a_local_repo_of_other_sizes_keeps_its_own_noise_schedule(wan_repo: Path) -> None:
    assert PipelineConfig.from_pretrained(wan_repo).flow_shift is None


def test_with_precision_is_for_every_component_and_a_copy() -> None:
    config = PipelineConfig.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    changed = config.with_precision("fp16")
    assert type(changed) is type(config)
    assert {changed.precision_of(name) for name in ("transformer", "vae", "text_encoder", "image_encoder")} == {"fp16"}
    assert changed.flow_shift == 3.0
    assert config.dit_precision == "bf16"


def test_precision_of_numbered_components() -> None:
    config = PipelineConfig(dit_precision="fp16", text_encoder_precisions=("fp32", "bf16"))
    assert config.precision_of("transformer_2") == "fp16"
    assert config.precision_of("text_encoder") == "fp32"
    assert config.precision_of("text_encoder_2") == "bf16"
    with pytest.raises(ValueError, match="has no entry for text_encoder_3"):
        config.precision_of("text_encoder_3")
    with pytest.raises(ValueError, match="'vocoder': has no precision field"):
        config.precision_of("vocoder")


BAD: list[tuple[str, Any, str]] = [
    ("dit_precision", "float32", "must be one of fp32, bf16, fp16"),
    ("vae_precision", None, "must be one of fp32, bf16, fp16"),
    ("image_encoder_precision", "int8", "must be one of fp32, bf16, fp16"),
    ("text_encoder_precisions", "bf16", "must be a tuple"),
    ("text_encoder_precisions", (), "must be a tuple"),
    ("text_encoder_precisions", ("bf16", "x"), "must be a tuple"),
    ("flow_shift", 0, "must be more than 0"),
    ("flow_shift", float("nan"), "must be a finite number"),
    ("vae_tile_size", 128, "does nothing without vae_tiling; set vae_tiling=True, or leave it 256"),
    ("vae_tile_size", 0, "must be a whole number, at least 1"),
    ("vae_tiling", "no", "must be True or False"),
    ("vae_sp", "yes", "must be True or False"),
    ("text_len", 0, "must be a whole number, at least 1"),
]


@pytest.mark.parametrize(("name", "value", "rule"), BAD)
def test_check_says_value_and_rule(name: str, value: Any, rule: str) -> None:
    config = PipelineConfig()
    setattr(config, name, value)
    with pytest.raises(ValueError) as error:
        config.check()
    assert str(error.value).startswith(f"{name}={value!r}: {rule}")


def test_an_unknown_field_cannot_be_assigned() -> None:
    with pytest.raises(ValueError, match="did you mean 'flow_shift'"):
        PipelineConfig().flow_shft = 3.0
