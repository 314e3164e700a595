"""Weights that stay on disk or in host memory until a stage uses them: the same video, and less memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.configs.pipelines import PipelineConfig
from fastvideo.distributed.offload import Offloaded
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.layers.residence import OnDevice
from fastvideo.models.loader.component_loader import blueprint, load_component, load_components
from fastvideo.models.loader.offload import DiskHome, host_home, offload
from fastvideo.models.loader.repo import resolve_repo, weight_sources
from fastvideo.models.loader.weights import give_dtypes
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken
from tests.models.reference import write_repo
from tests.pipelines.stand_ins import make_batch
from tests.tiny_repos import make_transformer

CPU = torch.device("cpu")
REQUEST: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 3.0}


def samples(repo: Path, **options: Any) -> torch.Tensor:
    """The video [1, 3, T, H, W] of one prompt."""
    with VideoGenerator.from_pretrained(repo, device="cpu", **options) as generator:
        result = generator.generate_video("a red circle", save_video=False, return_frames=True, **REQUEST)
    assert not isinstance(result, list)
    return result.samples


@pytest.fixture(scope="module")
def plain(wan_repo: Path) -> torch.Tensor:
    """The video without any offloading."""
    return samples(wan_repo)


@pytest.mark.parametrize(
    "options",
    [
        {"disk_offload": True},
        {"disk_offload": True, "dit_layerwise_offload": True},
        {"disk_offload": ("text_encoder",)},
        {"disk_offload": ["transformer", "vae"], "dit_layerwise_offload": True},
    ],
    ids=str,
)
def test_from_disk_the_video_is_the_same_bit_for_bit(
    wan_repo: Path, plain: torch.Tensor, options: dict[str, Any]
) -> None:
    assert torch.equal(samples(wan_repo, **options), plain)


def test_a_preview_brings_the_decoder(wan_repo: Path, plain: torch.Tensor) -> None:
    seen = []
    with VideoGenerator.from_pretrained(wan_repo, device="cpu", disk_offload=True) as generator:
        result = generator.generate_video(
            "a red circle", save_video=False, return_frames=True, progress=seen.append, preview_every=1, **REQUEST
        )
    assert not isinstance(result, list)
    assert torch.equal(result.samples, plain)
    assert any(progress.preview is not None for progress in seen)


@pytest.mark.parametrize("repo", ["i2v_repo", "wan22_i2v_repo", "ti2v_repo"])
def test_image_to_video_too(repo: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(repo)
    image = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(2))
    videos = []
    for options in ({}, {"disk_offload": True, "dit_layerwise_offload": True}):
        with VideoGenerator.from_pretrained(folder, device="cpu", **options) as generator:
            result = generator.generate_video("kite", image=image, save_video=False, return_frames=True, **REQUEST)
        assert not isinstance(result, list)
        videos.append(result.samples)
    assert torch.equal(*videos)


def test_from_pickled_files_too(official_repo: Path) -> None:
    expected = samples(official_repo)
    assert torch.equal(samples(official_repo, disk_offload=True, dit_layerwise_offload=True), expected)


@pytest.mark.parametrize("options", [
    {"dit_cpu_offload": True, "text_encoder_cpu_offload": True, "vae_cpu_offload": True},
    {"dit_layerwise_offload": True},
])  # fmt: skip
def test_from_host_memory_the_video_is_the_same_bit_for_bit(wan_repo: Path, options: dict[str, Any]) -> None:
    # a CPU device is refused these, as they gain nothing there; what loads and runs them does not care
    repo, config = resolve_repo(wan_repo), PipelineConfig.from_pretrained(wan_repo)
    videos = []
    for chosen in ({}, options):
        args = FastVideoArgs(model=str(wan_repo), device="cpu", **chosen)
        pipeline = WanPipeline.from_repo(repo, args, config, progress=False)
        offloaded = {name for name, model in pipeline.components.items()
                     if isinstance(getattr(model, "residence", None), Offloaded)}  # fmt: skip
        named = {"dit_layerwise_offload": "transformer", "dit_cpu_offload": "transformer"}
        assert offloaded == {named.get(name, name.removesuffix("_cpu_offload")) for name in chosen}
        for _ in range(2):
            video = pipeline.forward(make_batch(**REQUEST)).video
        assert video is not None
        videos.append(video)
        for name in offloaded:
            assert all(x.is_meta for x in pipeline.components[name].state_dict().values())  # type: ignore
    assert torch.equal(*videos)


def test_after_a_cancelled_request_nothing_is_left_and_the_next_one_runs(wan_repo: Path, plain: torch.Tensor) -> None:
    token = CancelToken()
    with VideoGenerator.from_pretrained(
        wan_repo, device="cpu", disk_offload=True, dit_layerwise_offload=True
    ) as generator:
        with pytest.raises(Cancelled):
            generator.generate_video(
                "a red circle", save_video=False, cancel=token, **REQUEST,
                progress=lambda progress: progress.stage == "denoising" and progress.step == 1 and token.cancel(),
            )  # fmt: skip
        pipeline = generator._executor._pipeline  # type: ignore
        for name in ("text_encoder", "transformer", "vae"):
            assert all(x.is_meta for x in pipeline.components[name].state_dict().values())
        result = generator.generate_video("a red circle", save_video=False, return_frames=True, **REQUEST)
    assert not isinstance(result, list)
    assert torch.equal(result.samples, plain)


@pytest.mark.parametrize("repo", ["wan_repo", "official_repo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_home_reads_is_what_the_loader_loads(
    repo: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    for source in weight_sources(resolve_repo(request.getfixturevalue(repo))):
        expected = load_component(source, dtype=dtype).state_dict()
        plan = blueprint(source)
        give_dtypes(plan.model, dtype, plan.arch.keep_fp32)
        home = DiskHome(plan.model, source.weight_files, plan.mapping)
        some = list(expected)[::2]
        for names in (some, list(expected)):
            found = home.read(names, CPU)
            assert list(found) == names
            assert all(torch.equal(found[name], expected[name]) for name in names)
            assert all(found[name].dtype == expected[name].dtype for name in names)


def test_a_text_encoder_is_there_a_layer_at_a_time(wan_repo: Path) -> None:
    args = FastVideoArgs.from_kwargs(str(wan_repo), device="cpu", disk_offload=True)
    assert [args.home(name) for name in ("transformer", "transformer_2", "text_encoder", "vae")] == ["disk"] * 4
    assert args.by_layer("text_encoder")
    assert not args.by_layer("transformer")
    args = FastVideoArgs.from_kwargs(str(wan_repo), disk_offload=True, dit_layerwise_offload=True, dit_cpu_offload=True)
    assert (args.home("transformer"), args.home("vae")) == ("host", "disk")
    assert args.by_layer("transformer_2")
    args = FastVideoArgs.from_kwargs(str(wan_repo), dit_layerwise_offload=True)
    assert (args.home("transformer"), args.home("text_encoder")) == ("host", "device")


def test_loading_reads_no_weight_that_stays_on_disk(wan_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvideo.models.loader.component_loader.load_component", None)
    args = FastVideoArgs(model=str(wan_repo), device="cpu", disk_offload=True)
    config = PipelineConfig.from_pretrained(wan_repo)
    loaded = load_components(resolve_repo(wan_repo), WanPipeline._required_config_modules, args, config, progress=False)
    model: Any = loaded["transformer"]
    assert all(x.is_meta for x in model.state_dict().values())
    assert model.proj_out.weight.dtype == torch.bfloat16
    assert model.modulation_out.dtype == torch.float32


def test_a_model_that_is_not_offloaded_is_always_ready(wan_repo: Path) -> None:
    model: Any = load_component(resolve_repo(wan_repo).components["vae"])
    assert isinstance(model.residence, OnDevice)
    offload(model, host_home(model), CPU, by_layer=True)
    assert isinstance(model.residence, Offloaded)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"disk_offload": ("transfomer",)}, "'transfomer': unknown component in disk_offload; did you mean 'transf"),
        ({"image_encoder_cpu_offload": True, "device": "cuda"}, "device='cuda'"),
        ({"dit_cpu_offload": True}, "dit_cpu_offload=True: does not go with device_type='cpu': the weights of a CPU"),
        ({"dit_layerwise_offload": True}, "set disk_offload=True too, which keeps them on disk"),
    ],
)  # fmt: skip
def test_what_gains_nothing_here_is_refused(wan_repo: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VideoGenerator.from_pretrained(wan_repo, **{"device": "cpu", **options})


def test_a_component_that_the_model_lacks() -> None:
    args = FastVideoArgs(model="m", image_encoder_cpu_offload=True)
    with pytest.raises(ValueError, match="image_encoder_cpu_offload=True: the model has no image_encoder; leave it"):
        args.check_components(["transformer", "text_encoder", "vae"])


MEASURE = """
import sys, torch
from fastvideo.models.loader.component_loader import blueprint
from fastvideo.models.loader.offload import DiskHome, offload
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.platforms.cpu import CPUPlatform, process_memory
source = resolve_repo(sys.argv[1]).components["transformer"]
plan, cpu = blueprint(source), CPUPlatform()
home = DiskHome(plan.model, source.weight_files, plan.mapping)
for by_layer in (False, True):
    offload(plan.model, home, torch.device("cpu"), by_layer=by_layer)
    cpu.reset_peak_memory()
    before = process_memory("VmRSS")
    plan.model.residence.enter()
    for number in range(len(plan.model.blocks)) if by_layer else ():
        plan.model.residence._before(number, None, ())
        plan.model.residence._after(number, None, (), ())
    peak = cpu.peak_memory() - before
    plan.model.residence.leave()
    print(peak, process_memory("VmRSS") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_host_memory_really_falls(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 4, "attention_head_dim": 96, "num_layers": 10, "ffn_dim": 2048}
    repo = write_repo(tmp_path, transformer=make_transformer(**sizes))
    weights = (repo / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    command = [sys.executable, "-c", MEASURE, str(repo)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    (whole, after_whole), (layers, after_layers) = (map(int, line.split()) for line in lines[-2:])
    assert whole > 0.95 * weights
    assert layers < 0.45 * weights
    assert max(after_whole, after_layers) < 0.1 * weights
