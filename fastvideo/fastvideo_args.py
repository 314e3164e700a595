"""`FastVideoArgs`: how a generator runs. What is sampled is in `SamplingParam`, what is wired in `PipelineConfig`."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvideo import envs
from fastvideo.configs.attention import AttentionOptions, MoBAConfig, Sizes, read_mask_strategy, require_window
from fastvideo.configs.base import Assignable, require_bool, require_number, require_whole
from fastvideo.configs.combinations import HOST_OFFLOAD, check_combinations, keeps_weights
from fastvideo.configs.pipelines.base import PRECISIONS, PipelineConfig
from fastvideo.configs.quantization import QUANTIZATIONS
from fastvideo.configs.sample.speed import QUALITIES
from fastvideo.utils import require, require_known

DEVICES = ("auto", "cuda", "cpu", "mps")
OTHER_WEIGHTS = ("transformer", "transformer_2", "text_encoder")
"""Components whose weights an option, called after them, may take from another file than the repo's."""
DEGREES = ("tp_size", "sp_size", "ulysses_size", "ring_size", "cfg_size")
"""Ways to share the work among devices."""

HOMES = ("device", "host", "disk")
"""Where the weights of a component may be while no stage uses it."""

HOST_OPTION = dict(zip(("transformer", "text_encoder", "image_encoder", "vae"), HOST_OFFLOAD, strict=True))
"""The option that keeps a component of that kind in host memory."""

BACKEND_OF = {
    "VSA_sparsity": "VIDEO_SPARSE_ATTN",
    "STA_window": "SLIDING_TILE_ATTN",
    "STA_tile_size": "SLIDING_TILE_ATTN",
    "mask_strategy_file_path": "SLIDING_TILE_ATTN",
    "moba_config": "VMOBA_ATTN",
}
"""The attention backend that each of these options is about."""


@dataclass(kw_only=True)
class FastVideoArgs(Assignable):
    """Engine options. Each that this version would ignore is refused by `check`, with what to do instead."""

    model: str
    """A registered Hub id, a local folder, or the name of the model in the package."""
    revision: str | None = None
    """Of a Hub repo: a branch, a tag or a commit."""
    precision: str = "auto"
    """Of every component: fp32, bf16 or fp16; auto is the pipeline's own for each."""
    device: str = "auto"
    """cuda, cpu or mps; auto is the first of them that is there."""
    pipeline_config: PipelineConfig | None = None
    """In place of the registered one."""
    attention_backend: str | None = None
    """A name as in FASTVIDEO_ATTENTION_BACKEND, which it overrides; None or auto picks the best that runs."""
    enable_torch_compile: bool = False
    """Compile the blocks of the diffusion transformer."""
    torch_compile_kwargs: dict[str, Any] | None = None
    """Keywords of `torch.compile`."""
    num_gpus: int = 1
    """Devices, each with a process of its own; on a CPU, processes. How they share the work is chosen for what of the
    degrees below is None."""
    tp_size: int | None = None
    """Devices that hold a slice of each layer of the transformer and the text encoder."""
    sp_size: int | None = None
    """Devices that hold a part of the tokens: ulysses_size * ring_size."""
    ulysses_size: int | None = None
    """Those of them that exchange heads for tokens; must divide the heads."""
    ring_size: int | None = None
    """Those of them that pass keys and values around."""
    cfg_size: int | None = None
    """2 computes the conditional and the unconditional prediction of guidance at the same time."""
    distributed_executor_backend: str = "mp"
    """mp (processes of this machine) or ray; with one device the generator runs in this process."""
    dist_timeout: float | None = None
    """Seconds without progress after which several devices are given up; None waits."""
    use_fsdp_inference: bool = False
    """Shard the weights over the devices that would hold equal ones, and gather a block at a time."""
    dit_cpu_offload: bool = False
    """Keep the transformer in host memory while no stage uses it; with use_fsdp_inference, its shards."""
    dit_layerwise_offload: bool = False
    """Bring the transformer's layers to the device one by one, the next while one computes."""
    text_encoder_cpu_offload: bool = False
    """Keep the text encoder in host memory, and bring its layers one by one; with use_fsdp_inference, its shards."""
    image_encoder_cpu_offload: bool = False
    """Keep the image encoder in host memory while no stage uses it."""
    vae_cpu_offload: bool = False
    """Keep the VAE in host memory while no stage uses it."""
    pin_cpu_memory: bool = False
    """Keep what is offloaded to host memory in pages that the device reads by itself."""
    disk_offload: bool | tuple[str, ...] = False
    """Leave weights in their files, and read them each time they are needed: of all components that are not kept in
    host memory, or of those named."""
    quantization: str | None = None
    """Of the weights of the diffusion transformer's linear layers: int8, int8_dynamic, fp8, fp8_dynamic or nf4."""
    text_encoder_quantization: str | None = None
    """The same, of the text encoder's."""
    quality: str = "exact"
    """exact; or high or fast: requests that do not say otherwise have that quality, and of what is not given it picks
    precision, quantization and attention, where `fastvideo tune` measured on this machine that this is quicker and
    keeps to the level's error budget."""
    transformer_path: str | None = None
    """A GGUF file with the weights of the diffusion transformer, in place of the repo's."""
    transformer_2_path: str | None = None
    """The same, of the transformer for steps with little noise, of a model with two."""
    text_encoder_path: str | None = None
    """The same, of the text encoder."""
    memory: str | None = None
    """auto chooses what of offloading, precision and tiling is not given so that the model fits; None leaves it."""
    VSA_sparsity: float = 0.0
    """Share of the key blocks that VIDEO_SPARSE_ATTN leaves out; 0 leaves none out."""
    STA_window: Sizes | None = None
    """Tiles in time, height and width that a query sees with SLIDING_TILE_ATTN, in every layer and head."""
    STA_tile_size: Sizes | None = None
    """Tokens of a tile in time, height and width; None is 6, 8, 8."""
    mask_strategy_file_path: str | None = None
    """A JSON file with the window of each layer and head, in place of STA_window."""
    moba_config: dict[str, Any] | None = None
    """How VMOBA_ATTN cuts and chooses, by the names of its config files; what is left out is the default."""
    lora_path: str | list[str] | None = None
    """One LoRA, or several: each a file, a folder or a Hub id, and after a colon its strength if that is not 1."""
    lora_nickname: str = "default"
    """What `set_lora_adapter` calls it; several are called after their files."""

    @classmethod
    def from_kwargs(cls, model: str | Path, **kwargs: Any) -> "FastVideoArgs":
        """The options that `kwargs` name, checked.

        Raises:
            ValueError: an unknown keyword (it names the nearest), or an option that `check` refuses.
        """
        require_known(kwargs, [name for name in cls.field_names() if name != "model"], "keyword of from_pretrained")
        args = cls(model=str(model), **kwargs)
        args.check()
        return args

    def check(self) -> None:
        """Check all options together; nothing is loaded.

        Raises:
            ValueError: the option, its value, the rule, and what to do instead.
        """
        envs.check_names()
        require(bool(self.model), "model", self.model, "must be a Hub id, a local folder, or a shipped model's name")
        choices = ("auto", *PRECISIONS)
        require(self.precision in choices, "precision", self.precision, f"must be one of {', '.join(choices)}")
        require(self.device in DEVICES, "device", self.device, f"must be one of {', '.join(DEVICES)}")
        require_whole("num_gpus", self.num_gpus, 1)
        self._check_parallel()
        self._check_offload()
        self._check_compile()
        self._check_quantization()
        self.attention_options()
        self._check_lora()
        config = self.pipeline_config
        if config is not None:
            rule = "must be a PipelineConfig, such as PipelineConfig.from_pretrained(model) gives"
            require(isinstance(config, PipelineConfig), "pipeline_config", config, rule)
            config.check()
        self.check_combinations(None if self.device == "auto" else self.device)

    def check_combinations(self, device_type: str | None, streams: bool = False) -> None:
        """Check that all options go together, on a device where it is known, and with a model that `streams`.

        Raises:
            ValueError: two that do not, why, and what to do.
        """
        config = {} if self.pipeline_config is None else self.pipeline_config.to_dict()
        known = {"device_type": device_type, "streams": streams, "transformer_on_disk": self._on_disk("transformer")}
        check_combinations({**self.to_dict(), **config, **known})
        for name in () if isinstance(self.disk_offload, bool) else self.disk_offload:
            kept = self._kept_in_host(name)
            require(not kept, "disk_offload", self.disk_offload, f"{kept}=True keeps {name!r} in host memory",
                    "leave one of them out")  # fmt: skip
        sharded = self.use_fsdp_inference and self.dit_cpu_offload
        require(not (self.enable_torch_compile and sharded), "enable_torch_compile", True,
                "has not been shown to go with shards in host memory", "leave it or dit_cpu_offload False")  # fmt: skip
        kwargs = self.torch_compile_kwargs or {}
        fixed = keeps_weights(kwargs)
        comes = any(self.home(name) != "device" for name in ("transformer", "transformer_2"))
        require(not (fixed and comes), "torch_compile_kwargs", kwargs, f"{fixed} keeps to the weights it saw first, "
                "and offloading brings new copies", "leave it out")  # fmt: skip

    def resolved_pipeline_config(self, default: PipelineConfig | None = None) -> PipelineConfig:
        """The pipeline config to use, checked: the one given, or `default`, or the model's own; then `precision`."""
        config = self.pipeline_config or default or PipelineConfig.from_pretrained(self.model)
        if self.precision != "auto":
            config = config.with_precision(self.precision)
        config.check()
        return config

    def home(self, component: str) -> str:
        """Where the weights of `component`, a name in `model_index.json`, are while no stage uses it: in `HOMES`."""
        if self._kept_in_host(component):
            return "host"
        if self._on_disk(component):
            return "disk"
        return "host" if _kind(component) == "transformer" and self.dit_layerwise_offload else "device"

    def _kept_in_host(self, component: str) -> str:
        """The option that keeps `component` in host memory, layer by layer apart; "" for none."""
        option = HOST_OPTION.get(_kind(component))
        return option if option is not None and getattr(self, option) else ""

    def _on_disk(self, component: str) -> bool:
        """Whether `disk_offload` is about `component`."""
        return self.disk_offload if isinstance(self.disk_offload, bool) else component in self.disk_offload

    def check_components(self, names: Collection[str]) -> None:
        """Check the options that are about components of a model that it has `names` of, all with weights.

        Raises:
            ValueError: an option is about a component that the model lacks, or would do nothing for those that it has.
        """
        disk, homes = self.disk_offload, {self.home(name) for name in names}
        if not isinstance(disk, bool):
            require_known(disk, names, "component in disk_offload")
        kinds = {_kind(name) for name in names}
        for kind, option in HOST_OPTION.items():
            require(kind in kinds or not getattr(self, option), option, True, f"the model has no {kind}",
                    "leave it False")  # fmt: skip
        require("disk" in homes or not disk, "disk_offload", disk,
                "does nothing: other options keep all components in host memory", "leave it False")  # fmt: skip
        require("host" in homes or not self.pin_cpu_memory, "pin_cpu_memory", True,
                "does nothing: the model has no component that is kept in host memory", "leave it False")  # fmt: skip

    def by_layer(self, component: str) -> bool:
        """Whether the weights of `component`, when they are not at home, are there a layer at a time."""
        # a text encoder's layers run once for all prompts: one by one, they are read no more often than all at once
        return component.startswith("text_encoder") or (
            component.startswith("transformer") and self.dit_layerwise_offload
        )

    @property
    def quantized(self) -> bool:
        """Whether any weights are quantized, here or in their files."""
        return bool(self.quantization or self.text_encoder_quantization or self.weight_paths)

    @property
    def weight_paths(self) -> dict[str, str]:
        """The files that weights are in where it is not the repo, by component."""
        given = {name: getattr(self, f"{name}_path") for name in OTHER_WEIGHTS}
        return {name: path for name, path in given.items() if path is not None}

    def quantization_of(self, component: str) -> str | None:
        """How the weights of `component`, a name in `model_index.json`, are quantized."""
        if component.startswith("transformer"):
            return self.quantization
        return self.text_encoder_quantization if component.startswith("text_encoder") else None

    @staticmethod
    def quantization_option(component: str) -> str:
        """The option that says so."""
        return "quantization" if component.startswith("transformer") else "text_encoder_quantization"

    def resolved_attention_backend(self) -> str:
        """The name asked for: the option, or FASTVIDEO_ATTENTION_BACKEND, or "auto"."""
        return self.attention_backend or envs.attention_backend() or "auto"

    def attention_options(self) -> AttentionOptions:
        """The options of attention backends that leave keys out, checked.

        Raises:
            ValueError: one that cannot be, or that the backend asked for would ignore.
        """
        backend = self.resolved_attention_backend()
        for name, owner in BACKEND_OF.items():
            value = getattr(self, name)
            require(not value or backend.upper() == owner, name, value,
                    f"does nothing with attention_backend={backend!r}", f"set attention_backend={owner!r}")  # fmt: skip
        require_number("VSA_sparsity", self.VSA_sparsity, 0, 1)
        require(self.VSA_sparsity < 1, "VSA_sparsity", self.VSA_sparsity, "must be less than 1: a query needs a key")
        options: dict[str, Any] = {"VSA_sparsity": self.VSA_sparsity}
        for name in ("STA_window", "STA_tile_size"):
            value = getattr(self, name)
            if value is not None:
                require_window(name, value)
                options[name] = tuple(value)
        path = self.mask_strategy_file_path
        if path is not None:
            require(self.STA_window is None, "STA_window", self.STA_window,
                    "mask_strategy_file_path says it for each head", "leave one of them out")  # fmt: skip
            options["STA_windows"] = read_mask_strategy(path)
        config = self.moba_config
        if config is not None:
            require(isinstance(config, dict), "moba_config", config, "must be a dict or None")
            options["moba"] = MoBAConfig.from_dict(config)
        return AttentionOptions(**options)

    def _check_parallel(self) -> None:
        given = 1
        for name in DEGREES:
            value = getattr(self, name)
            if value is not None:
                require_whole(name, value, 1)
                require(self.num_gpus % value == 0, name, value, f"must divide num_gpus={self.num_gpus}",
                        f"set num_gpus={value} or a multiple")  # fmt: skip
                given *= value if name in ("tp_size", "sp_size", "cfg_size") else 1
        require(self.num_gpus % given == 0, "num_gpus", self.num_gpus,
                f"must be a multiple of tp_size * sp_size * cfg_size = {given}")  # fmt: skip
        require(self.cfg_size in (None, 1, 2), "cfg_size", self.cfg_size,
                "must be 1 or 2: guidance has two predictions")  # fmt: skip
        executor = self.distributed_executor_backend
        require(executor in ("mp", "ray"), "distributed_executor_backend", executor, "must be 'mp' or 'ray'")
        if self.dist_timeout is not None:
            require_number("dist_timeout", self.dist_timeout, 0)
            require(self.dist_timeout > 0, "dist_timeout", self.dist_timeout, "must be more than 0 seconds")
        require_bool("use_fsdp_inference", self.use_fsdp_inference)
        if self.num_gpus == 1:
            nothing = "does nothing on one device"
            require(executor == "mp", "distributed_executor_backend", executor, nothing, "leave it 'mp'")
            require(self.dist_timeout is None, "dist_timeout", self.dist_timeout, nothing, "leave it None")
            require(not self.use_fsdp_inference, "use_fsdp_inference", True, nothing, "leave it False")

    def _check_offload(self) -> None:
        for name in (*HOST_OFFLOAD, "dit_layerwise_offload", "pin_cpu_memory"):
            require_bool(name, getattr(self, name))
        disk = self.disk_offload
        named = isinstance(disk, list | tuple) and all(isinstance(name, str) for name in disk)
        require(isinstance(disk, bool) or named, "disk_offload", disk, "must be True, False, or names of components")
        require(self.memory in (None, "auto"), "memory", self.memory, "must be 'auto' or None")
        transformers = ("transformer", "transformer_2")
        host = any(getattr(self, name) for name in HOST_OFFLOAD) or "host" in map(self.home, transformers)
        require(host or not self.pin_cpu_memory, "pin_cpu_memory", True, "does nothing without offloading to the host",
                "set dit_cpu_offload=True or the like, or leave it False")  # fmt: skip

    def loras(self) -> dict[str, tuple[str, float]]:
        """The path and the strength of each LoRA in `lora_path`, by nickname.

        Raises:
            ValueError: two have one nickname.
        """
        given = [self.lora_path] if isinstance(self.lora_path, str) else self.lora_path or []
        found: dict[str, tuple[str, float]] = {}
        for entry in given:
            path, strength = split_strength(entry)
            name = self.lora_nickname if len(given) == 1 else Path(path).stem
            other = found[name][0] if name in found else ""
            require(name not in found, "lora_path", self.lora_path, f"{path} has the nickname {name!r}, as has {other}",
                    "rename a file, or use set_lora_adapter, which takes nicknames")  # fmt: skip
            found[name] = (path, strength)
        return found

    def _check_lora(self) -> None:
        given = self.lora_path
        listed = [given] if isinstance(given, str) else given
        rule = "must be a path, or a list of paths"
        require(given is None or isinstance(listed, list), "lora_path", given, rule)
        require(all(isinstance(path, str) and path for path in listed or []), "lora_path", given, rule)
        name = self.lora_nickname
        require(isinstance(name, str) and bool(name), "lora_nickname", name, "must be a name")
        require(name == "default" or len(listed or []) == 1, "lora_nickname", name,
                "names the one LoRA of lora_path" + (", and there are several" if listed else ", and there is none"),
                "leave it out" if listed else "set lora_path, or leave it out")  # fmt: skip
        self.loras()

    def _check_quantization(self) -> None:
        choices = tuple(QUANTIZATIONS)
        for name in ("quantization", "text_encoder_quantization"):
            value = getattr(self, name)
            require(value is None or value in choices, name, value, f"must be one of {', '.join(choices)}, or None")
        for name in OTHER_WEIGHTS:
            path = getattr(self, f"{name}_path")
            text = path is None or (isinstance(path, str) and path.endswith(".gguf"))
            require(text, f"{name}_path", path, "must be the path of a .gguf file")
        require(self.quality in QUALITIES, "quality", self.quality, f"must be one of {', '.join(QUALITIES)}")

    def _check_compile(self) -> None:
        require_bool("enable_torch_compile", self.enable_torch_compile)
        kwargs = self.torch_compile_kwargs
        require(kwargs is None or isinstance(kwargs, dict), "torch_compile_kwargs", kwargs, "must be a dict or None")
        inner = (kwargs or {}).get("options")
        require(inner is None or isinstance(inner, dict), "torch_compile_kwargs", kwargs, "options must be a dict")
        require(not kwargs or self.enable_torch_compile, "torch_compile_kwargs", kwargs,
                "does nothing without enable_torch_compile", "set enable_torch_compile=True")  # fmt: skip


def _kind(component: str) -> str:
    """Of what kind `component`, a name in `model_index.json`, is: its name without a number."""
    return re.sub(r"_\d+$", "", component)


def split_strength(entry: str) -> tuple[str, float]:
    """Path and strength of a LoRA given as `path` or `path:strength`.

    Raises:
        ValueError: the strength is no finite number.
    """
    path, colon, text = entry.rpartition(":")
    if not colon or Path(entry).exists():
        return entry, 1.0
    try:
        strength = float(text)
    except ValueError:
        return entry, 1.0
    require(math.isfinite(strength), "lora_path", entry, "its strength must be a finite number", f"as in {path}:0.8")
    return path, strength
