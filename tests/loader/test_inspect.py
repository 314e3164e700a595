"""`inspect_repo`: what is in a repo and where it goes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastvideo.models.loader import checkpoint
from fastvideo.models.loader.inspect import inspect_repo


@pytest.fixture(autouse=True)
def _no_tensor_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(checkpoint, "_getter", fail)


def test_a_diffusers_repo(wan_repo: Path) -> None:
    report = inspect_repo(wan_repo)
    assert (report.entry, report.pipeline_class, report.revision) == ("wan2.1-t2v", "WanPipeline", None)
    components = {component.name: component for component in report.components}
    assert set(components) == {"scheduler", "text_encoder", "tokenizer", "transformer", "vae"}
    vae = components["vae"]
    state = load_file(wan_repo / "vae" / "diffusion_pytorch_model.safetensors")
    assert vae.config_file == "vae/config.json"
    assert vae.model == "fastvideo.models.vaes.wanvae:AutoencoderKLWan"
    assert vae.weight_files == ("vae/diffusion_pytorch_model.safetensors",)
    assert vae.parameters == sum(tensor.numel() for tensor in state.values())
    assert vae.nbytes == 4 * vae.parameters
    assert vae.dtypes == {"float32": len(state)}
    assert {weight.name for weight in vae.weights} == set(state)
    assert components["scheduler"].model is None
    assert components["scheduler"].weights == ()
    assert report.parameters == sum(component.parameters for component in report.components)


def test_bytes_in_memory(wan_repo: Path) -> None:
    def loaded(**options: str) -> dict[str, int]:
        return {component.name: component.loaded for component in inspect_repo(wan_repo, **options).components}

    plain, packed = loaded(), loaded(quantization="int8")
    assert plain["vae"] == packed["vae"] > 0
    assert plain["text_encoder"] == packed["text_encoder"] > loaded(text_encoder_quantization="int8")["text_encoder"]
    assert 0.3 * plain["transformer"] < packed["transformer"] < 0.7 * plain["transformer"]
    assert plain["scheduler"] == 0
    with pytest.raises(ValueError, match=r"quantization=.nf4.: layer .* is 180x60, which is no multiple of 64 weights"):
        inspect_repo(wan_repo, quantization="nf4")
    with pytest.raises(ValueError, match="quantization='q8': must be one of int8"):
        inspect_repo(wan_repo, quantization="q8")


def test_where_each_weight_goes(official_repo: Path) -> None:
    components = {component.name: component for component in inspect_repo(official_repo).components}
    weights = {weight.name: weight for weight in components["transformer"].weights}
    found = weights["blocks.2.self_attn.k.weight"]
    assert (found.target, found.part, found.parts) == ("blocks.2.self_attn.qkv.weight", 1, 3)
    assert (found.shape, found.dtype) == ((60, 60), "float32")
    assert found.file == "diffusion_pytorch_model.safetensors"
    assert components["text_encoder"].weight_files == ("models_t5_umt5-xxl-enc-bf16.pth",)


def test_weights_that_are_not_loaded_say_so(wan_repo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    for path in wan_repo.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(wan_repo)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    save_file({**state, "encoder.embed_tokens.weight": state["shared.weight"].clone()}, path)
    components = {component.name: component for component in inspect_repo(folder).components}
    targets = {weight.name: weight.target for weight in components["text_encoder"].weights}
    assert targets["shared.weight"] == "embedding.weight"
    assert targets["encoder.embed_tokens.weight"] is None


def test_what_does_not_fit_is_an_error(wan_repo: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]})
    )
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text((wan_repo / "vae" / "config.json").read_text())
    save_file({"w": torch.ones(2)}, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"component 'vae': weight .* is missing .and there is 'w' in"):
        inspect_repo(tmp_path)
