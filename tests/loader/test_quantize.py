"""Models whose weights are quantized while they are loaded: which, how close, compiled, and in what memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastvideo.configs.registry import SHIPPED_MODEL
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.layers.quantization import held_bytes
from fastvideo.models.encoders.base import TextEncoder
from fastvideo.models.loader.component_loader import blueprint, load_component, load_components, load_tokenizer
from fastvideo.models.loader.plan import layout_of, numbers_of
from fastvideo.models.loader.quantize import quantized_layers
from fastvideo.models.loader.repo import resolve_repo

pytest.importorskip("torchao", reason="needs the extra quant")

BOUNDS = {"int8": 0.012, "int8_dynamic": 0.02, "fp8": 0.04, "nf4": 0.12}
"""Of the relative error of the shipped transformer in fp32, twice what is measured here; at larger sizes it is less."""


def velocity(model: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What the shipped transformer predicts for fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 8, 3, 8, 12, generator=generator), torch.randn(1, 7, 128, generator=generator)
    with torch.inference_mode():
        prediction: torch.Tensor = model(latents, torch.tensor([700.0]), text=text.to(dtype), text_padding=500)
    return prediction.float()


def load(component: str, method: str | None, **options: Any) -> nn.Module:
    """A component of the shipped model."""
    return load_component(resolve_repo(SHIPPED_MODEL).components[component], quantization=method, **options)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, over the whole tensor."""
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", BOUNDS)
def test_the_transformer_stays_close(method: str) -> None:
    exact, model = load("transformer", None), load("transformer", method)
    difference = error(velocity(model), velocity(exact))
    assert 0 < difference < BOUNDS[method]


@pytest.mark.parametrize("method", BOUNDS)
def test_the_text_encoder_stays_close(method: str) -> None:
    states = []
    for one in (None, method):
        encoder = load("text_encoder", one)
        assert isinstance(encoder, TextEncoder)
        encoder.tokenizer = load_tokenizer(resolve_repo(SHIPPED_MODEL).components["tokenizer"])
        states.append(encoder(["a red circle moving left on a white background"]).states)
    assert 0 < error(states[1], states[0]) < BOUNDS[method]


def test_which_layers_are_quantized() -> None:
    model = load("transformer", "int8")
    for name, parameter in model.named_parameters():
        inside = name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name
        assert (held_bytes(parameter) < parameter.numel() * 2) == inside, name
    plan = blueprint(resolve_repo(SHIPPED_MODEL).components["transformer"])
    assert set(quantized_layers(plan.model, plan.arch)) == {
        f"blocks.{block}.{layer}.weight" for block in range(7) for layer in (
            "self_attn.qkv", "self_attn.out", "cross_attn.q", "cross_attn.kv", "cross_attn.out", "ffn.fc_in",
            "ffn.fc_out",
        )
    }  # fmt: skip


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_the_bytes_foretold_are_those_held(component: str, method: str) -> None:
    plan = blueprint(resolve_repo(SHIPPED_MODEL).components[component])
    foretold = plan.nbytes_in(
        torch.bfloat16, FastVideoArgs(model="m", quantization=method, text_encoder_quantization=method)
    )
    model = load_component(plan, dtype=torch.bfloat16, quantization=method)
    # NF4 has a table of 16 codes for each weight beside
    assert foretold == pytest.approx(sum(held_bytes(x) for x in model.parameters()), rel=0.02)


# ---- What is refused ----


def test_weights_that_would_be_sharded_are_not_when_quantized(wan_repo: Path) -> None:
    repo = resolve_repo(wan_repo)
    plans = [blueprint(source) for source in repo.components.values() if source.has_weights]
    for method, sharded in ((None, True), ("int8", False)):
        args = FastVideoArgs.from_kwargs(str(wan_repo), num_gpus=2, device="cpu", quantization=method)
        numbers = numbers_of(plans, repo.entry, args.resolved_pipeline_config(), args)
        assert layout_of(numbers, args, memory=numbers.spread_bytes).fsdp == sharded


def refuse(repo: Path, message: str, **options: Any) -> None:
    """Check that `load_components` refuses, in one line."""
    args = FastVideoArgs.from_kwargs(str(repo), device="cpu", **options)
    resolved = resolve_repo(repo)
    with pytest.raises(ValueError) as raised:
        load_components(resolved, tuple(resolved.components), args, args.resolved_pipeline_config(), progress=False)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("option", ["quantization", "text_encoder_quantization"])
def test_what_cannot_run_is_refused_by_its_option(wan_repo: Path, option: str) -> None:
    refuse(wan_repo, f"{option}='fp8_dynamic': does not run on cpu", precision="bf16", **{option: "fp8_dynamic"})
    refuse(wan_repo, f"{option}='int8': does not go with fp16", precision="fp16", **{option: "int8"})


def test_sizes_that_do_not_divide_name_the_layer(wan_repo: Path) -> None:
    message = "quantization='nf4': layer 'blocks.0.self_attn.qkv.weight' is 180x60, which is no multiple of 64 weights"
    refuse(wan_repo, message, quantization="nf4")


def test_weights_that_stay_elsewhere_are_refused(wan_repo: Path) -> None:
    refuse(wan_repo, "component 'text_encoder' stays on disk", text_encoder_quantization="int8", disk_offload=True)
    for options in (
        {"quantization": "int8", "num_gpus": 2, "use_fsdp_inference": True},
        {"text_encoder_quantization": "int8", "num_gpus": 2, "use_fsdp_inference": True},
        {"quantization": "int8", "dit_cpu_offload": True},
        {"quantization": "int8", "dit_layerwise_offload": True},
        {"text_encoder_quantization": "int8", "text_encoder_cpu_offload": True},
    ):
        with pytest.raises(ValueError, match="quantization='int8': does not go with"):
            FastVideoArgs.from_kwargs(str(wan_repo), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lora_path='a\.safetensors': does not go with quantization='int8'"):
        FastVideoArgs.from_kwargs(str(wan_repo), quantization="int8", lora_path="a.safetensors")


def test_without_torchao_nothing_is_read(wan_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setattr("fastvideo.models.loader.component_loader.load_component", lambda *_, **__: pytest.fail("read"))
    refuse(wan_repo, "run pip install 'fastvideo[quant]'", text_encoder_quantization="int8")


# ---- Compiled, and memory ----


@pytest.mark.slow
@pytest.mark.parametrize("method", BOUNDS)
def test_compiled_blocks_give_the_same(method: str) -> None:
    # rounded inputs turn a last bit into a step: what INT8 products are close to is the exact result
    expected = velocity(load("transformer", None if method == "int8_dynamic" else method))
    model = load("transformer", method)
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile()
    assert error(velocity(model), expected) < (BOUNDS[method] if method == "int8_dynamic" else 1e-5)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured through /proc, which only Linux has")
def test_one_weight_at_a_time_is_whole_in_memory(tmp_path: Path) -> None:
    # 168 MB of fp32 would be 84 of bf16 before they were quantized
    code = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
from fastvideo.configs.models.base import ParamNamesMapping
from fastvideo.layers.quantization import held_bytes, quantizer
from fastvideo.models.loader import checkpoint
from fastvideo.models.loader.weights import load_into
from fastvideo.platforms import current_platform
checkpoint.REMAP_BYTES = 8 << 20
path, methods = Path(sys.argv[1]), sys.argv[2:]
weight = torch.randn(1024, 2048)
save_file({f"{n}.weight": weight + n for n in range(20)}, path)
cpu = current_platform("cpu")
for method in methods:
    quantize = quantizer(method)
    quantize(nn.Linear(256, 256, bias=False))
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(2048, 1024, bias=False) for _ in range(20)))
    cpu.reset_peak_memory()
    before = cpu.peak_memory()
    load_into(model, [path], ParamNamesMapping(), dtype=torch.bfloat16,
              finish=lambda name: quantize(model.get_submodule(name.removesuffix(".weight"))))
    print(sum(held_bytes(x) for x in model.parameters()), cpu.peak_memory() - before)
    del model
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "weights.safetensors"), *BOUNDS],
        capture_output=True, text=True, check=True, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},
    )  # fmt: skip
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    for method, (held, peak) in zip(BOUNDS, found, strict=True):
        assert held < 20 * 1024 * 2048 * (0.6 if method == "nf4" else 1.1)
        assert peak < held + 45e6, method
