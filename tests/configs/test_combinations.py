"""Every row of the table of options that do not combine."""

from typing import Any

import pytest

from fastvideo.configs.combinations import CONFLICTS, Conflict, check_combinations, is_on
from fastvideo.fastvideo_args import FastVideoArgs

VALUES: dict[str, Any] = {
    "num_gpus": 2, "tp_size": 2, "lora_path": "style.safetensors", "disk_offload": ("transformer",),
    "device_type": "cpu",
}  # fmt: skip
"""A value that switches the option on; True where there is none."""
OFF: dict[str, Any] = {"num_gpus": 1, "tp_size": 1, "lora_path": None, "disk_offload": False, "device_type": "cuda"}


def value_of(conflict: Conflict, name: str) -> Any:
    """A value with which `name` is one of the two."""
    return conflict.values[0] if name == conflict.other and conflict.values else VALUES.get(name, True)


@pytest.mark.parametrize("conflict", CONFLICTS, ids=lambda row: f"{row.option}-{row.other}")
def test_a_row(conflict: Conflict) -> None:
    both = {name: value_of(conflict, name) for name in (conflict.option, conflict.other)}
    with pytest.raises(ValueError) as error:
        check_combinations(both)
    # another row may be about the same two
    assert f"{conflict.option}={both[conflict.option]!r}: does not go with {conflict.other}=" in str(error.value)
    assert conflict.reason in str(error.value)
    assert conflict.fix in str(error.value)
    assert "\n" not in str(error.value)
    for name in both:
        conflict.check({**both, name: OFF.get(name, False)})
    if conflict.unless:
        conflict.check({**both, conflict.unless: VALUES.get(conflict.unless, True)})


def test_rows_name_options_that_there_are() -> None:
    fields = {*FastVideoArgs.field_names(), "device_type", "vae_tiling", "streams", "transformer_on_disk"}
    assert {name for row in CONFLICTS for name in (row.option, row.other, row.unless) if name} <= fields


def test_what_is_on() -> None:
    assert not is_on("num_gpus", 1)
    assert is_on("num_gpus", 2)
    assert not is_on("disk_offload", ())
    assert not is_on("attention_backend", None)
    check_combinations({})


def test_the_engine_asks_the_table() -> None:
    with pytest.raises(ValueError, match="dit_layerwise_offload=True: does not go with num_gpus=2"):
        FastVideoArgs.from_kwargs("m", dit_layerwise_offload=True, num_gpus=2)
    args = FastVideoArgs.from_kwargs("m", dit_layerwise_offload=True)
    args.check_combinations("cuda")
    with pytest.raises(ValueError, match="does not go with device_type='mps'"):
        args.check_combinations("mps")


LAYERS = {"dit_layerwise_offload": True}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        # on disk are others: the transformer's layers would be copied from host memory to host memory
        ({**LAYERS, "device": "cpu", "disk_offload": ("text_encoder",)}, "does not go with device_type='cpu'"),
        ({**LAYERS, "device": "mps", "disk_offload": ["vae"]}, "does not go with device_type='mps'"),
        ({**LAYERS, "dit_cpu_offload": True, "disk_offload": ("vae",)}, "does not go with dit_layerwise_offload=True"),
        # the files are its home, so nothing is in host memory to be pinned
        ({**LAYERS, "pin_cpu_memory": True, "disk_offload": True}, "pin_cpu_memory=True: does nothing without offload"),
        ({"dit_cpu_offload": True, "disk_offload": ("transformer_2",)}, "dit_cpu_offload=True keeps 'transformer_2'"),
        ({"vae_cpu_offload": True, "disk_offload": ["vae"]}, "vae_cpu_offload=True keeps 'vae' in host memory; leave"),
    ],
    ids=str,
)  # fmt: skip
def test_it_is_the_home_of_the_weights_that_counts(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        FastVideoArgs.from_kwargs("m", **options)
    assert words in str(error.value)


def test_homes_that_differ_go_together() -> None:
    for options in (
        {"device": "cpu", "disk_offload": ("transformer",)},
        {"device": "cpu", "disk_offload": True},
        # in host memory is the transformer, on disk are the others
        {"dit_cpu_offload": True, "disk_offload": True},
        {"pin_cpu_memory": True, "disk_offload": ("vae",)},
        {"pin_cpu_memory": True, "disk_offload": True, "text_encoder_cpu_offload": True},
    ):
        FastVideoArgs.from_kwargs("m", **LAYERS, **options)


def test_what_does_nothing_for_the_components_that_there_are() -> None:
    names = ["transformer", "text_encoder", "vae"]
    args = FastVideoArgs.from_kwargs("m", **LAYERS, pin_cpu_memory=True, disk_offload=("transformer",))
    with pytest.raises(ValueError, match="pin_cpu_memory=True: does nothing: the model has no component that is kept"):
        args.check_components(names)
    args.check_components([*names, "transformer_2"])
    every: dict[str, Any] = dict.fromkeys(("dit_cpu_offload", "text_encoder_cpu_offload", "vae_cpu_offload"), True)
    args = FastVideoArgs.from_kwargs("m", **every, disk_offload=True)
    with pytest.raises(ValueError, match="disk_offload=True: does nothing: other options keep all components in host"):
        args.check_components(names)
    args.check_components([*names, "motion_encoder"])


@pytest.mark.parametrize(
    "ties",
    [
        {"mode": "reduce-overhead"},
        {"mode": "max-autotune"},
        {"backend": "cudagraphs"},
        {"options": {"triton.cudagraphs": True}},
        {"options": {"freezing": True}},
    ],
    ids=str,
)
def test_compiled_code_that_keeps_to_its_weights(ties: dict[str, Any]) -> None:
    options: dict[str, Any] = {"enable_torch_compile": True, "torch_compile_kwargs": ties}
    for away in ({"dit_layerwise_offload": True}, {"dit_cpu_offload": True}, {"disk_offload": ("transformer_2",)}):
        with pytest.raises(ValueError, match="keeps to the weights it saw first, and offloading brings new copies"):
            FastVideoArgs.from_kwargs("m", **options, **away)
    FastVideoArgs.from_kwargs("m", **options, text_encoder_cpu_offload=True)
    for free in ({"mode": "max-autotune-no-cudagraphs"}, {"options": {"freezing": False}}):
        options["torch_compile_kwargs"] = free
        FastVideoArgs.from_kwargs("m", **options, dit_layerwise_offload=True)
