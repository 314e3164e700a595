"""NVIDIA graphics processors, and AMD ones through ROCm."""

import torch

from fastvideo.platforms.base import Platform


class CUDAPlatform(Platform):
    """The current CUDA device."""

    device_type = "cuda"

    def name(self) -> str:
        return torch.cuda.get_device_name()

    def why_unavailable(self) -> str | None:
        if torch.version.cuda is None and torch.version.hip is None:
            return f"PyTorch {torch.__version__} is built without CUDA; install a CUDA build, or use 'cpu' or 'auto'"
        if not torch.cuda.is_available():
            return "PyTorch sees no CUDA device; check the driver with nvidia-smi, or use 'cpu' or 'auto'"
        return None

    def supported_precisions(self) -> tuple[str, ...]:
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("fp32", "bf16", "fp16") if half else ("fp32", "fp16")

    def total_memory(self) -> int:
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)

    def available_memory(self) -> int:
        """Free memory of the device, and what PyTorch's allocator holds without using."""
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + cached

    def peak_memory(self) -> int:
        return torch.cuda.max_memory_allocated()

    def reset_peak_memory(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def synchronize(self) -> None:
        torch.cuda.synchronize()
