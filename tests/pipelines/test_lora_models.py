"""LoRAs on models with two transformers, and with an image encoder, against the reference."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.models.loader.lora import LoraSet, load_adapter, transformers_of
from fastvideo.models.loader.repo import resolve_repo
from tests import loras
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, load, load_reference, ours, picture, request, theirs

pytest.importorskip("peft")

FEW = ("attn1.to_q", "attn2.to_k", "ffn.net.2")


def check(repo: Path, path: str, reference: Any, media: dict[str, Any], **fields: Any) -> None:
    """Ours with the LoRA at `path`, beside and merged, is `reference`, and the LoRA does something."""
    pipeline = load(repo)
    adapter = load_adapter("style", path, transformers_of(resolve_repo(repo)))
    assert adapter.not_applied == {}
    expected = theirs(reference, [CAT], ["blurry"], **media, **fields)
    assert difference(ours(pipeline, [CAT], ["blurry"], media, **fields), expected) > 10 * LEVEL
    for merged in (False, True):
        pipeline.adapt(LoraSet(((adapter, 0.7),), merged))
        assert difference(ours(pipeline, [CAT], ["blurry"], media, **fields), expected) < LEVEL


@pytest.mark.parametrize("spelling", ["files", "prefixes"])
def test_one_for_each_of_two_transformers(wan22_repo: Path, tmp_path: Path, spelling: str) -> None:
    high, low = loras.make_pairs(1, names=FEW), loras.make_pairs(2, names=FEW)
    reference = load_reference(wan22_repo)
    files = {
        "high_noise_model": loras.write(tmp_path / "pair" / "high_noise_model.safetensors", loras.comfy(high)),
        "low_noise_model": loras.write(tmp_path / "pair" / "low_noise_model.safetensors", loras.comfy(low)),
    }
    for name, path in files.items():
        reference.load_lora_weights(path, adapter_name=name, load_into_transformer_2=name.startswith("low"))
    reference.transformer.set_adapters("high_noise_model", 0.7)
    reference.transformer_2.set_adapters("low_noise_model", 0.7)
    alphas = {
        f"{name}.blocks.{number}.{layer}.alpha": torch.tensor(loras.ALPHA)
        for name in ("transformer", "transformer_2") for number in range(3) for layer in FEW
    }  # fmt: skip
    both = loras.peft(high) | loras.peft(low, "transformer_2.") | alphas
    path = str(tmp_path / "pair") if spelling == "files" else loras.write(tmp_path / "both.safetensors", both)
    check(wan22_repo, path, reference, {}, **request(num_inference_steps=6, guidance_scale_2=1.7))


def test_one_for_both_transformers(wan22_repo: Path, tmp_path: Path) -> None:
    path = loras.write(tmp_path / "style.safetensors", loras.kohya(loras.make_pairs(1)))
    reference = load_reference(wan22_repo)
    for second in (False, True):
        reference.load_lora_weights(path, adapter_name=f"style_{second}", load_into_transformer_2=second)
    reference.transformer.set_adapters("style_False", 0.7)
    reference.transformer_2.set_adapters("style_True", 0.7)
    check(wan22_repo, path, reference, {}, **request(num_inference_steps=6))


def test_image_to_video(i2v_repo: Path, tmp_path: Path) -> None:
    """With the layers for the image's tokens, which only such models have."""
    state = loras.comfy(loras.make_pairs(1), alpha=None)
    draws = torch.Generator().manual_seed(3)
    for number in range(3):
        for name in ("k_img", "v_img"):
            layer = f"diffusion_model.blocks.{number}.cross_attn.{name}"
            state[f"{layer}.lora_down.weight"] = 0.3 * torch.randn(3, 60, generator=draws)
            state[f"{layer}.lora_up.weight"] = 0.3 * torch.randn(60, 3, generator=draws)
    path = loras.write(tmp_path / "style.safetensors", state)
    reference = load_reference(i2v_repo)
    reference.load_lora_weights(path, adapter_name="style")
    reference.set_adapters(["style"], [0.7])
    check(i2v_repo, path, reference, {"image": picture(48, 32)}, **request())


def test_one_for_text_to_video_on_image_to_video(i2v_repo: Path, tmp_path: Path) -> None:
    path = loras.write(tmp_path / "style.safetensors", loras.comfy(loras.make_pairs(1)))
    reference = load_reference(i2v_repo)
    reference.load_lora_weights(path, adapter_name="style")
    reference.set_adapters(["style"], [0.7])
    check(i2v_repo, path, reference, {"image": picture(48, 32)}, **request())
