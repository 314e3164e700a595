"""Which layout a model gets."""

from pathlib import Path
from typing import Any

import pytest

from fastvideo.distributed.layout import Layout
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.plan import ModelNumbers, blueprints_of, choose_layout, layout_of, numbers_of
from fastvideo.models.loader.repo import resolve_repo

GB = 10**9
SMALL = ModelNumbers(
    heads=12, widths={"transformer.ffn_dim": 8960, "transformer.num_attention_heads": 12}, spread_bytes=14 * GB,
    whole_bytes=GB, guided=True,
)  # fmt: skip
"""Heads and widths of Wan2.1-T2V-1.3B."""
LARGE = ModelNumbers(
    heads=40, widths={"transformer.ffn_dim": 13824, "transformer.num_attention_heads": 40}, spread_bytes=40 * GB,
    whole_bytes=GB, guided=True,
)  # fmt: skip
FEW_STEPS = ModelNumbers(heads=12, widths={}, spread_bytes=3 * GB, whole_bytes=GB, guided=False)


def layout(numbers: ModelNumbers, memory: int = 80 * GB, vae: bool = False, **options: Any) -> Layout:
    """The layout for options of `from_pretrained`."""
    return layout_of(numbers, FastVideoArgs.from_kwargs("m", **options), memory=memory, vae=vae)


@pytest.mark.parametrize(
    ("numbers", "options", "expected"),
    [
        (SMALL, {"num_gpus": 2}, Layout(cfg=2)),
        (SMALL, {"num_gpus": 3}, Layout(ulysses=3)),
        (SMALL, {"num_gpus": 4}, Layout(cfg=2, ulysses=2)),
        (SMALL, {"num_gpus": 5}, Layout(ring=5)),
        (SMALL, {"num_gpus": 8}, Layout(cfg=2, ulysses=4)),
        (SMALL, {"num_gpus": 16}, Layout(cfg=2, ulysses=4, ring=2)),
        (LARGE, {"num_gpus": 16}, Layout(cfg=2, ulysses=8)),
        (LARGE, {"num_gpus": 64}, Layout(cfg=2, ulysses=8, ring=4)),
        (FEW_STEPS, {"num_gpus": 4}, Layout(ulysses=4)),
        (SMALL, {"num_gpus": 4, "sp_size": 4}, Layout(ulysses=4)),
        (SMALL, {"num_gpus": 4, "sp_size": 2}, Layout(cfg=2, ulysses=2)),
        (SMALL, {"num_gpus": 4, "ring_size": 4}, Layout(ring=4)),
        (SMALL, {"num_gpus": 4, "ulysses_size": 4}, Layout(ulysses=4)),
        (SMALL, {"num_gpus": 4, "ulysses_size": 2, "ring_size": 2}, Layout(ulysses=2, ring=2)),
        (SMALL, {"num_gpus": 4, "tp_size": 4}, Layout(tp=4)),
        (SMALL, {"num_gpus": 4, "tp_size": 2}, Layout(tp=2, cfg=2)),
        (SMALL, {"num_gpus": 8, "tp_size": 2, "cfg_size": 1}, Layout(tp=2, ulysses=2, ring=2)),
        (SMALL, {"num_gpus": 2, "use_fsdp_inference": True}, Layout(cfg=2, fsdp=True)),
    ],
)  # fmt: skip
def test_what_is_chosen(numbers: ModelNumbers, options: dict[str, Any], expected: Layout) -> None:
    assert layout(numbers, **options) == expected


def test_weights_that_do_not_fit_are_sharded() -> None:
    assert not layout(LARGE, num_gpus=2, memory=80 * GB).fsdp
    assert layout(LARGE, num_gpus=2, memory=64 * GB).fsdp
    assert not layout(LARGE, num_gpus=2, tp_size=2, memory=24 * GB).fsdp
    sharded = layout(LARGE, num_gpus=4, memory=24 * GB)
    assert LARGE.bytes_per_device(sharded) == 11 * GB


@pytest.mark.parametrize(
    ("numbers", "options", "words"),
    [
        (SMALL, {"num_gpus": 8, "tp_size": 8}, "tp_size=8: must divide transformer.num_attention_heads=12; 1, 2, 4"),
        (SMALL, {"num_gpus": 8, "ulysses_size": 8},
         "ulysses_size=8: must divide the 12 heads of the model's attention; use ulysses_size=4 and ring_size=2"),
        (SMALL, {"num_gpus": 8, "sp_size": 4, "ring_size": 4, "ulysses_size": 2}, "sp_size=4: must be ulysses_size=2"),
        (SMALL, {"num_gpus": 8, "sp_size": 2}, "num_gpus=8: tp_size=1 and sp_size=2 leave 4 groups"),
        (FEW_STEPS, {"num_gpus": 4, "sp_size": 2},
         "sp_size=2 is half of it, and the model has no guidance to split; use sp_size=4"),
        (SMALL, {"num_gpus": 4, "sp_size": 2, "cfg_size": 1}, "num_gpus=4: is not the product of sp_size=2, cfg"),
        (SMALL, {"num_gpus": 2, "tp_size": 2, "use_fsdp_inference": True}, "fsdp=True: all ranks hold slices already"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(numbers: ModelNumbers, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layout(numbers, **options)


def test_the_numbers_of_a_repo(wan_repo: Path) -> None:
    args = FastVideoArgs.from_kwargs(str(wan_repo), num_gpus=3, device="cpu")
    repo, config = resolve_repo(wan_repo), args.resolved_pipeline_config()
    numbers = numbers_of(blueprints_of(repo), repo.entry, config, FastVideoArgs(model=str(repo.model), device="cpu"))
    assert numbers.heads == 3
    assert numbers.widths["transformer.ffn_dim"] == 100
    assert numbers.widths["text_encoder.d_ff"] == 52
    assert numbers.guided
    assert choose_layout(repo, args, config) == Layout(ulysses=3, vae=True)
    config.vae_sp = False
    assert choose_layout(repo, args, config) == Layout(ulysses=3)


@pytest.mark.parametrize(
    ("options", "vae_sp", "words"),
    [
        ({}, True, "vae_sp=True: does nothing on one device"),
        ({"num_gpus": 2, "use_fsdp_inference": True, "dit_cpu_offload": True}, None,
         "dit_cpu_offload=True: does not go with device_type='cpu': the weights of a CPU"),
    ],
)  # fmt: skip
def test_what_does_nothing_is_refused(wan_repo: Path, options: dict[str, Any], vae_sp: bool | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        args = FastVideoArgs.from_kwargs(str(wan_repo), device="cpu", **options)
        config = args.resolved_pipeline_config()
        config.vae_sp = vae_sp
        choose_layout(resolve_repo(wan_repo), args, config)
