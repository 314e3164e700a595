"""Videos of quantized models, from option to file to replay."""

from pathlib import Path

import pytest

from fastvideo import VideoGenerator
from fastvideo.configs.registry import SHIPPED_MODEL
from fastvideo.entrypoints import media
from fastvideo.entrypoints.cli.main import main
from tests import tiny_gguf

pytest.importorskip("torchao", reason="needs the extra quant")


def test_a_clip_carries_how_its_weights_were_quantized_and_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"quantization": "int8_dynamic", "text_encoder_quantization": "fp8", "device": "cpu"}
    size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "return_frames": True}
    with VideoGenerator.from_pretrained("shapes-t2v", **options) as generator:
        quantized = generator.generate_video("a red circle", output_path="a.gif", **size)
    with VideoGenerator.from_pretrained("shapes-t2v", device="cpu") as generator:
        exact = generator.generate_video("a red circle", save_video=False, **size)
    assert not isinstance(quantized, list) and not isinstance(exact, list)
    assert quantized.samples is not None and exact.samples is not None
    assert 0 < (quantized.samples - exact.samples).abs().mean() < 0.02
    metadata = media.read_metadata(Path("a.gif"))
    assert metadata["quantization"] == "int8_dynamic"
    assert metadata["text_encoder_quantization"] == "fp8"
    assert "torchao" in metadata["versions"]
    assert main(["replay", "a.gif"]) == 0
    assert capsys.readouterr().out == "a_replay.gif: the same, bit for bit, as a.gif\n"
    assert media.read_metadata(Path("a_replay.gif"))["quantization"] == "int8_dynamic"


def test_a_clip_of_gguf_files_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.chdir(tmp_path)
    paths = {"transformer": "wan.gguf", "text_encoder": "umt5.gguf"}
    for (component, path), architecture in zip(paths.items(), ("wan", "t5encoder"), strict=True):
        state, _ = tiny_gguf.state_of(SHIPPED_MODEL, component)
        tiny_gguf.write_gguf(tmp_path / path, state, tiny_gguf.mixed("Q8_0"), architecture)
    options = {f"{component}_path": path for component, path in paths.items()}
    size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    with VideoGenerator.from_pretrained("shapes-t2v", device="cpu", **options) as generator:
        generator.generate_video("a red circle", output_path="a.gif", **size)
    metadata = media.read_metadata(Path("a.gif"))
    assert metadata["weight_paths"] == paths
    assert set(metadata["model"]["weights"]) == {"wan.gguf", "umt5.gguf", "vae/diffusion_pytorch_model.safetensors"}
    assert main(["replay", "a.gif"]) == 0
    assert capsys.readouterr().out == "a_replay.gif: the same, bit for bit, as a.gif\n"
