"""Apple's graphics processors."""

import platform

import torch

from fastvideo.platforms.base import Platform


class MPSPlatform(Platform):
    """The Metal device. It reports no peak, so the peak is what its driver holds now."""

    device_type = "mps"

    def name(self) -> str:
        return f"Apple {platform.machine()}"

    def why_unavailable(self) -> str | None:
        if not torch.backends.mps.is_built():
            return f"PyTorch {torch.__version__} is built without Metal; use 'cpu' or 'auto'"
        if not torch.backends.mps.is_available():
            return "Metal is not available on this machine; use 'cpu' or 'auto'"
        return None

    def supported_precisions(self) -> tuple[str, ...]:
        return ("fp32", "bf16", "fp16")

    def total_memory(self) -> int:
        return int(torch.mps.recommended_max_memory())

    def available_memory(self) -> int:
        return max(0, self.total_memory() - int(torch.mps.driver_allocated_memory()))

    def peak_memory(self) -> int:
        return int(torch.mps.driver_allocated_memory())

    def reset_peak_memory(self) -> None:
        return

    def synchronize(self) -> None:
        torch.mps.synchronize()
