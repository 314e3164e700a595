"""The one table of options that do not combine, with the reason and the fix. Whoever adds an option adds its rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastvideo.utils import require

HOST_OFFLOAD = ("dit_cpu_offload", "text_encoder_cpu_offload", "image_encoder_cpu_offload", "vae_cpu_offload")
"""Options that keep a component in host memory between the stages that use it."""
OFFLOAD = (*HOST_OFFLOAD, "dit_layerwise_offload", "disk_offload")
"""Options that keep weights elsewhere than on the device."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Two options that cannot both be on."""

    option: str
    """The one that is refused."""
    other: str
    """The one that it does not go with."""
    values: tuple[object, ...] = ()
    """Of `other`, those that it does not go with; empty for all that switch it on."""
    unless: str = ""
    """An option that makes the two go together when it is on."""
    reason: str
    fix: str

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise a `ValueError` if `options`, by name, have both."""
        value, other = options.get(self.option), options.get(self.other)
        clash = other in self.values if self.values else is_on(self.other, other)
        if self.unless and is_on(self.unless, options.get(self.unless)):
            return
        both = is_on(self.option, value) and clash
        require(not both, self.option, value, f"does not go with {self.other}={other!r}: {self.reason}", self.fix)


ON: dict[str, Callable[[Any], bool]] = {
    "num_gpus": lambda value: value is not None and value > 1,
    "tp_size": lambda value: value is not None and value > 1,
}
"""What switches an option on, where it is not a value that counts as true."""

_HERE = "the weights of a CPU or MPS device are in host memory already"

CONFLICTS: tuple[Conflict, ...] = (
    *(
        Conflict(
            option=name, other="device_type", values=("cpu", "mps"), reason=_HERE,
            fix="leave it False; disk_offload=True keeps them on disk",
        )
        for name in HOST_OFFLOAD
    ),
    Conflict(
        option="dit_layerwise_offload", other="device_type", values=("cpu", "mps"), unless="transformer_on_disk",
        reason=_HERE,
        fix="set disk_offload=True too, which keeps them on disk, or name the transformer in it, or leave it False",
    ),
    Conflict(
        option="pin_cpu_memory", other="device_type", values=("cpu", "mps"),
        reason="there is nothing to copy to the device", fix="leave it False",
    ),
    *(
        Conflict(
            option=name, other="num_gpus", unless="use_fsdp_inference",
            reason="several devices hold the weights together, or shard them",
            fix="set use_fsdp_inference=True, or leave it False",
        )
        for name in ("dit_cpu_offload", "text_encoder_cpu_offload")
    ),
    *(
        Conflict(
            option=name, other="num_gpus", reason="several devices hold the weights together, or shard them",
            fix="leave it False; use_fsdp_inference=True shards them",
        )
        for name in ("image_encoder_cpu_offload", "vae_cpu_offload", "dit_layerwise_offload", "disk_offload")
    ),
    Conflict(
        option="dit_cpu_offload", other="dit_layerwise_offload", unless="transformer_on_disk",
        reason="that one keeps the transformer in host memory already", fix="leave one of them False",
    ),
    *(
        Conflict(
            option=name, other="use_fsdp_inference", reason="quantized weights cannot be sharded",
            fix="use tp_size in its place, or leave it None",
        )
        for name in ("quantization", "text_encoder_quantization")
    ),
    *(
        Conflict(
            option=name, other=other, reason="quantized weights stay on the device",
            fix="leave one of them out: they may well fit now",
        )
        for name, other in (
            ("quantization", "dit_cpu_offload"), ("quantization", "dit_layerwise_offload"),
            ("text_encoder_quantization", "text_encoder_cpu_offload"),
        )
    ),
    *(
        Conflict(
            option="lora_path", other=other, reason="quantized weights cannot be changed any more",
            fix="leave one of them out, or merge the LoRA into the weights beforehand",
        )
        for other in ("quantization", "transformer_path", "transformer_2_path")
    ),
    *(
        Conflict(
            option=name, other=other, reason="weights in the blocks of a file stay as they are, on the device",
            fix="leave one of them out",
        )
        for name, others in (
            ("transformer_path", ("quantization", "dit_cpu_offload", "dit_layerwise_offload")),
            ("transformer_2_path", ("quantization", "dit_cpu_offload", "dit_layerwise_offload")),
            ("text_encoder_path", ("text_encoder_quantization", "text_encoder_cpu_offload")),
        )
        for other in (*others, "tp_size", "use_fsdp_inference")
    ),
    Conflict(
        option="memory", other="num_gpus", reason="it plans for one device, and several are laid out by num_gpus",
        fix="leave it None; fastvideo plan MODEL --num-gpus shows the layouts",
    ),
    *(
        Conflict(
            option="memory", other=name, reason="it plans with the repo's own weights",
            fix="leave it None, or the file out: it chooses a quantization where one is needed",
        )
        for name in ("transformer_path", "transformer_2_path", "text_encoder_path")
    ),
    *(
        Conflict(
            option=name, other="streams", reason=f"this model makes its video chunk by chunk, {reason}", fix=fix
        )
        for name, reason, fix in (
            ("num_gpus", "and keeps what it sees of earlier ones on one device", "use num_gpus=1"),
            ("enable_torch_compile", "and code would be compiled anew for each", "leave it False"),
            ("vae_tiling", "and tiles need the whole of it", "leave it False"),
        )
    ),
)  # fmt: skip


def is_on(name: str, value: Any) -> bool:
    """Whether `value` switches option `name` on."""
    return ON.get(name, bool)(value)


def check_combinations(options: Mapping[str, Any]) -> None:
    """Check that what is switched on goes together.

    Args:
        options: values by name: of engine and pipeline, and "device_type" and, of the model, "streams" once they are
            known; and "transformer_on_disk", whether `disk_offload` is about the transformer. What is left out is off.

    Raises:
        ValueError: the first pair that does not, why, and what to do.
    """
    for conflict in CONFLICTS:
        conflict.check(options)


def keeps_weights(compile_options: Mapping[str, Any]) -> str:
    """What in `compile_options`, keywords of `torch.compile`, ties compiled code to weights at their addresses, or to
    their values: CUDA graphs, and freezing; "" for nothing."""
    for name, ties in (("mode", ("reduce-overhead", "max-autotune")), ("backend", ("cudagraphs",))):
        if compile_options.get(name) in ties:
            return f"{name}={compile_options[name]!r}"
    inner = compile_options.get("options") or {}
    return next((name for name in ("triton.cudagraphs", "freezing") if inner.get(name)), "")
