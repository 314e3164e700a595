"""`FastVideoArgs`: how a generator runs. What is sampled is in `SamplingParam`, what is wired in `PipelineConfig`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvideo import envs
from fastvideo.configs.base import Assignable, require_bool, require_number, require_whole
from fastvideo.configs.pipelines.base import PRECISIONS, PipelineConfig
from fastvideo.utils import require, require_known

DEVICES = ("auto", "cuda", "cpu", "mps")

_OFFLOAD = "is not available in this version; leave it False, or choose a smaller model or precision='bf16'"
_REFUSED_WHEN_TRUE = {
    "use_fsdp_inference": "needs several devices, which this version does not use; leave it False",
    "dit_cpu_offload": _OFFLOAD,
    "dit_layerwise_offload": _OFFLOAD,
    "text_encoder_cpu_offload": _OFFLOAD,
    "image_encoder_cpu_offload": _OFFLOAD,
    "vae_cpu_offload": _OFFLOAD,
    "pin_cpu_memory": "serves offloading, which is not available in this version; leave it False",
}


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
    tp_size: int = 1
    sp_size: int = 1
    distributed_executor_backend: str = "mp"
    """mp or ray; with one device the generator runs in this process."""
    dist_timeout: float | None = None
    """Seconds, between devices."""
    use_fsdp_inference: bool = False
    dit_cpu_offload: bool = False
    dit_layerwise_offload: bool = False
    text_encoder_cpu_offload: bool = False
    image_encoder_cpu_offload: bool = False
    vae_cpu_offload: bool = False
    pin_cpu_memory: bool = False
    VSA_sparsity: float = 0.0
    """Share of the key blocks that video sparse attention leaves out."""
    lora_path: str | None = None
    lora_nickname: str = "default"

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
        for name in ("num_gpus", "tp_size", "sp_size"):
            require_whole(name, getattr(self, name), 1)
        for name, reason in _REFUSED_WHEN_TRUE.items():
            require_bool(name, getattr(self, name))
            require(not getattr(self, name), name, True, reason)
        self._check_parallel()
        self._check_compile()
        require_number("VSA_sparsity", self.VSA_sparsity, 0, 1)
        require(self.VSA_sparsity == 0, "VSA_sparsity", self.VSA_sparsity,
                "video sparse attention is not available in this version", "leave it 0")  # fmt: skip
        require(self.lora_path is None, "lora_path", self.lora_path,
                "LoRA is not available in this version", "merge it into the weights beforehand")  # fmt: skip
        require(self.lora_nickname == "default", "lora_nickname", self.lora_nickname,
                "names a LoRA, and LoRA is not available in this version", "leave it out")  # fmt: skip
        config = self.pipeline_config
        if config is not None:
            rule = "must be a PipelineConfig, such as PipelineConfig.from_pretrained(model) gives"
            require(isinstance(config, PipelineConfig), "pipeline_config", config, rule)
            config.check()

    def resolved_pipeline_config(self, default: PipelineConfig | None = None) -> PipelineConfig:
        """The pipeline config to use, checked: the one given, or `default`, or the model's own; then `precision`."""
        config = self.pipeline_config or default or PipelineConfig.from_pretrained(self.model)
        if self.precision != "auto":
            config = config.with_precision(self.precision)
        config.check()
        return config

    def resolved_attention_backend(self) -> str:
        """The name asked for: the option, or FASTVIDEO_ATTENTION_BACKEND, or "auto"."""
        return self.attention_backend or envs.attention_backend() or "auto"

    def _check_parallel(self) -> None:
        one = "this version runs on one device"
        require(self.num_gpus == 1, "num_gpus", self.num_gpus, one, "use num_gpus=1, and one process for each device")
        require(self.tp_size == 1, "tp_size", self.tp_size, one, "use tp_size=1")
        require(self.sp_size == 1, "sp_size", self.sp_size, one, "use sp_size=1")
        executor = self.distributed_executor_backend
        require(executor in ("mp", "ray"), "distributed_executor_backend", executor, "must be 'mp' or 'ray'")
        require(executor == "mp", "distributed_executor_backend", executor, one, "leave it 'mp'")
        require(self.dist_timeout is None, "dist_timeout", self.dist_timeout, one, "leave it None")

    def _check_compile(self) -> None:
        require_bool("enable_torch_compile", self.enable_torch_compile)
        kwargs = self.torch_compile_kwargs
        require(kwargs is None or isinstance(kwargs, dict), "torch_compile_kwargs", kwargs, "must be a dict or None")
        require(not kwargs or self.enable_torch_compile, "torch_compile_kwargs", kwargs,
                "does nothing without enable_torch_compile", "set enable_torch_compile=True")  # fmt: skip
