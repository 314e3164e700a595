"""LoRAs against the reference: `load_lora_weights`, `set_adapters` and `fuse_lora` of `diffusers`, by way of `peft`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo import PipelineConfig, VideoGenerator
from tests import loras
from tests.models.reference import BF16_NOISE
from tests.pipelines.test_wan_pipeline import CAT, LEVEL, load_reference, theirs

pytest.importorskip("peft")

ROUNDING = 2e-5
"""Of pixels in [0, 1], between two orders of additions in fp32; measured 3e-6 to 6e-6."""
SMALL: dict[str, Any] = {
    "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 3, "guidance_scale": 5.0, "seed": 3,
}  # fmt: skip
FIRST, SECOND = loras.make_pairs(1), loras.make_pairs(2, names=("attn1.to_q", "attn2.to_v", "ffn.net.2"), rank=5)


BIASES = {f"diffusion_model.{loras.official(name)}.diff_b": up[:, 0] for name, (_, up) in FIRST.items()}
"""A difference for the bias of every layer; the reference reads them if no layer is without one."""


def outer_layers() -> dict[str, torch.Tensor]:
    """Layers outside the blocks, as distilled models publish them: pairs, and the whole difference of the last."""
    generator = torch.Generator().manual_seed(8)
    state = {}
    for name, wide, tall in (("time_projection.1", 60, 360), ("text_embedding.0", 36, 60), ("text_embedding.2", 60, 60),
                             ("time_embedding.0", 32, 60), ("time_embedding.2", 60, 60)):  # fmt: skip
        state[f"diffusion_model.{name}.lora_down.weight"] = 0.3 * torch.randn(3, wide, generator=generator)
        state[f"diffusion_model.{name}.lora_up.weight"] = 0.3 * torch.randn(tall, 3, generator=generator)
        state[f"diffusion_model.{name}.diff_b"] = 0.1 * torch.randn(tall, generator=generator)
    # the reference makes of this pair of keys a pair of matrices, one of which is the identity
    state["diffusion_model.head.head.diff"] = 0.1 * torch.randn(64, 60, generator=generator)
    state["diffusion_model.head.head.diff_b"] = 0.1 * torch.randn(64, generator=generator)
    return state


NOTED = {"r": loras.RANK, "lora_alpha": 2 * loras.RANK, "target_modules": sorted(loras.LINEAR)}
SPELLINGS: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {
    "diffusers": (loras.peft(FIRST), {}),
    "diffusers, some layers": (loras.peft(SECOND), {}),
    "diffusers, alpha in the header": (loras.peft(FIRST), NOTED),
    "diffusers, rank-stabilised": (loras.peft(FIRST), NOTED | {"use_rslora": True}),
    "diffusers, alpha by layer": (loras.peft(FIRST),
                                  NOTED | {"alpha_pattern": {"attn1.to_q": 9, "blocks.1.ffn.net.2": 1}}),
    "diffusers, lora_B.bias": (loras.peft(FIRST) | {
        f"transformer.{name}.lora_B.bias": up[:, 0] for name, (_, up) in FIRST.items()}, NOTED | {"lora_bias": True}),
    "authors' names, lora_down and alpha": (loras.comfy(FIRST), {}),
    "authors' names, no alpha": (loras.comfy(FIRST, alpha=None), {}),
    "authors' names, lora_A": ({key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value
                                for key, value in loras.comfy(FIRST, alpha=None).items()}, {}),
    "authors' names, diff_b": (loras.comfy(FIRST) | BIASES, {}),
    "authors' names, outside the blocks": (loras.comfy(FIRST) | BIASES | outer_layers(), {}),
    "kohya": (loras.kohya(FIRST), {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def generator(wan_repo: Path) -> Iterator[VideoGenerator]:
    """Ours, in fp32."""
    with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def reference(wan_repo: Path) -> Any:
    """Theirs."""
    return load_reference(wan_repo)


@pytest.fixture(autouse=True)
def _without_any(reference: Any, generator: VideoGenerator) -> Iterator[None]:
    """Each test starts and ends with the model alone."""
    yield
    reference.unload_lora_weights()
    for name in list(generator._adapters.known):
        generator.set_lora_adapter(name, strength=0)
    if generator._adapters.merged:
        generator.unmerge_lora_weights()


def ours(generator: VideoGenerator) -> torch.Tensor:
    """The video [1, 3, T, H, W]."""
    made = generator.generate_video(CAT, save_video=False, return_frames=True, negative_prompt="blurry", **SMALL)
    assert not isinstance(made, list) and made.samples is not None
    return made.samples


def expected(reference: Any) -> torch.Tensor:
    """The reference's."""
    return theirs(reference, [CAT], ["blurry"], **SMALL)


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of any pixel."""
    assert one.shape == other.shape
    return float((one - other).abs().max())


@pytest.fixture(scope="module")
def plain(generator: VideoGenerator) -> torch.Tensor:
    """Without a LoRA."""
    return ours(generator)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_pixels_equal_the_reference(
    generator: VideoGenerator, reference: Any, plain: torch.Tensor, tmp_path: Path, spelling: str
) -> None:
    state, settings = SPELLINGS[spelling]
    path = loras.write(tmp_path / "style.safetensors", state, **settings)
    reference.load_lora_weights(path, adapter_name="style")
    reference.set_adapters(["style"], [0.7])
    said = generator.set_lora_adapter(spelling, path, strength=0.7)
    assert (said.applied, said.not_applied) == (len(state), {})
    beside = ours(generator)
    assert far(beside, expected(reference)) < LEVEL
    assert far(beside, plain) > 20 * LEVEL, "the LoRA does something"
    generator.merge_lora_weights()
    merged = ours(generator)
    assert far(merged, beside) < ROUNDING
    reference.fuse_lora(lora_scale=1.0)
    assert far(merged, expected(reference)) < LEVEL
    reference.unfuse_lora()
    generator.unmerge_lora_weights()
    assert torch.equal(ours(generator), beside)


def test_several_at_once_and_swapped(
    generator: VideoGenerator, reference: Any, plain: torch.Tensor, tmp_path: Path
) -> None:
    paths = {
        "first": loras.write(tmp_path / "first.safetensors", loras.peft(FIRST)),
        "second": loras.write(tmp_path / "second.safetensors", loras.comfy(SECOND)),
        "third": loras.write(tmp_path / "third.safetensors", loras.kohya(loras.make_pairs(4))),
    }
    for name, path in paths.items():
        reference.load_lora_weights(path, adapter_name=name)
        generator.set_lora_adapter(name, path)
    for strengths in ({"first": 0.8, "second": -0.6}, {"third": 0.5}, {"second": 1.0, "first": 0.1, "third": 0.3}):
        reference.set_adapters(list(strengths), list(strengths.values()))
        for number, (name, strength) in enumerate(strengths.items()):
            generator.set_lora_adapter(name, strength=strength, accumulate=number > 0)
        beside = ours(generator)
        assert far(beside, expected(reference)) < LEVEL
        generator.merge_lora_weights()
        assert far(ours(generator), beside) < ROUNDING
        generator.unmerge_lora_weights()
    for name in paths:
        generator.set_lora_adapter(name, strength=0, accumulate=True)
    assert torch.equal(ours(generator), plain)


def test_swapped_while_merged(generator: VideoGenerator, plain: torch.Tensor, tmp_path: Path) -> None:
    first = loras.write(tmp_path / "one.safetensors", loras.peft(FIRST))
    second = loras.write(tmp_path / "two.safetensors", loras.peft(SECOND))
    generator.set_lora_adapter("two", second)
    beside = ours(generator)
    generator.set_lora_adapter("one", first)
    generator.merge_lora_weights()
    generator.set_lora_adapter("two")
    merged = ours(generator)
    assert 0 < far(merged, beside) < ROUNDING
    weights = generator._executor._pipeline.components["transformer"].state_dict()  # type: ignore[union-attr]
    assert not any("lora" in name for name in weights)
    generator.set_lora_adapter("two", strength=0)
    assert torch.equal(ours(generator), plain), "the weights have their bits back"


OURS_ALONE = {
    "base_model.model.": (loras.peft(FIRST, "base_model.model."), loras.peft(FIRST)),
    "base_model.model. and an adapter's name": (loras.peft(FIRST, "base_model.model.", "default."), loras.peft(FIRST)),
    "no prefix": (loras.peft(FIRST, ""), loras.peft(FIRST)),
    "no prefix, authors' names": (loras.comfy(FIRST, prefix=""), loras.comfy(FIRST)),
    "pipe.dit.": (loras.comfy(FIRST, prefix="pipe.dit."), loras.comfy(FIRST)),
    "diffusion_model., diffusers' names": (loras.peft(FIRST, "diffusion_model."), loras.peft(FIRST)),
    "lora.down": ({key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): value
                   for key, value in loras.peft(FIRST).items()}, loras.peft(FIRST)),
}  # fmt: skip
"""Spellings that the reference does not read, and the same in one that it reads."""


@pytest.mark.parametrize("spelling", OURS_ALONE)
def test_spellings_that_the_reference_does_not_read(generator: VideoGenerator, tmp_path: Path, spelling: str) -> None:
    videos = []
    for number, state in enumerate(OURS_ALONE[spelling]):
        path = loras.write(tmp_path / f"{number}.safetensors", state)
        said = generator.set_lora_adapter(f"{spelling} {number}", path)
        assert (said.applied, said.not_applied) == (len(state), {})
        videos.append(ours(generator))
    assert torch.equal(*videos)


def test_differences_equal_the_reference_with_other_weights(
    generator: VideoGenerator, reference: Any, plain: torch.Tensor, tmp_path: Path
) -> None:
    """Those of norms and of whole matrices, which the reference's loader leaves out."""
    names = {
        "blocks.0.attn1.norm_k.weight": "blocks.0.self_attn.norm_k.diff",
        "blocks.1.norm2.weight": "blocks.1.norm3.diff",
        "blocks.1.norm2.bias": "blocks.1.norm3.diff_b",
        "blocks.2.attn1.to_v.weight": "blocks.2.self_attn.v.diff",
        "blocks.2.attn2.to_k.bias": "blocks.2.cross_attn.k.diff_b",
        "blocks.0.scale_shift_table": "blocks.0.modulation.diff",
        "scale_shift_table": "head.modulation.diff",
        "patch_embedding.weight": "patch_embedding.diff",
        "condition_embedder.time_proj.bias": "time_projection.1.diff_b",
    }
    draws = torch.Generator().manual_seed(6)
    weights = dict(reference.transformer.named_parameters())
    state = {theirs: 0.5 * torch.randn(weights[ours].shape, generator=draws) for ours, theirs in names.items()}
    path = loras.write(tmp_path / "style.safetensors", {f"diffusion_model.{k}": v for k, v in state.items()})
    said = generator.set_lora_adapter("differences", path, strength=0.4)
    assert (said.applied, said.not_applied) == (len(names), {})
    before = {ours: weights[ours].detach().clone() for ours in names}
    with torch.no_grad():
        for ours_name, theirs_name in names.items():
            weights[ours_name].add_(0.4 * state[theirs_name])
        changed = ours(generator)
        assert far(changed, expected(reference)) < LEVEL
        for name, value in before.items():
            weights[name].copy_(value)
    assert far(changed, plain) > 20 * LEVEL
    generator.set_lora_adapter("differences", strength=0)
    assert torch.equal(ours(generator), plain)


def test_an_official_folder(official_repo: Path, reference: Any, tmp_path: Path) -> None:
    """The model's own names and the LoRA's need not be of one format."""
    path = loras.write(tmp_path / "style.safetensors", loras.peft(FIRST))
    reference.load_lora_weights(path, adapter_name="style")
    fields = {"precision": "fp32", "device": "cpu", "pipeline_config": PipelineConfig(flow_shift=3.0)}
    with VideoGenerator.from_pretrained(official_repo, lora_path=path, **fields) as made:
        assert far(ours(made), expected(reference)) < LEVEL
        made.merge_lora_weights()
        assert far(ours(made), expected(reference)) < LEVEL


def test_bf16_is_no_worse_than_the_reference(
    wan_repo: Path, generator: VideoGenerator, reference: Any, tmp_path: Path
) -> None:
    """Mean errors of the transformer's output against fp32, beside the weights; in them, rounding adds to it."""
    path = loras.write(tmp_path / "style.safetensors", loras.peft(FIRST))
    reference.load_lora_weights(path, adapter_name="style")
    inputs = torch.Generator().manual_seed(0)
    latents, text = torch.randn(8, 16, 3, 4, 6, generator=inputs), torch.randn(8, 512, 36, generator=inputs)
    times = torch.linspace(30, 970, 8)
    low = load_reference(wan_repo, torch.bfloat16)
    low.load_lora_weights(path, adapter_name="style")
    config = PipelineConfig(dit_precision="bf16", flow_shift=3.0)
    with torch.no_grad(), VideoGenerator.from_pretrained(wan_repo, device="cpu", pipeline_config=config) as made:
        truth = reference.transformer(latents, times, text).sample
        made.set_lora_adapter("style", path)
        model: Any = made._executor._pipeline.components["transformer"]  # type: ignore[union-attr]
        mine = model(latents.bfloat16(), times, text=text.bfloat16()).float()
        theirs = low.transformer(latents.bfloat16(), times, text.bfloat16()).sample.float()
    assert (mine - truth).abs().mean() < BF16_NOISE * (theirs - truth).abs().mean()
