"""Facts about a device."""

from abc import ABC, abstractmethod

import torch

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of each precision."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory was not enough, on whatever device."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


class Platform(ABC):
    """A device: its dtypes, its memory, and when its work is done. Memory is in bytes."""

    device_type: str

    @property
    def device(self) -> torch.device:
        """The device to place tensors on."""
        return torch.device(self.device_type)

    @abstractmethod
    def name(self) -> str:
        """What the device calls itself."""

    @abstractmethod
    def why_unavailable(self) -> str | None:
        """The reason why this device cannot be used here, or None when it can."""

    @abstractmethod
    def supported_precisions(self) -> tuple[str, ...]:
        """The names in `DTYPES` that the device computes in."""

    @abstractmethod
    def total_memory(self) -> int:
        """Memory of the device, or what this process may use of it where that is less."""

    @abstractmethod
    def available_memory(self) -> int:
        """Memory that can be allocated now."""

    @abstractmethod
    def peak_memory(self) -> int:
        """The most memory in use since `reset_peak_memory`: on a CPU by the whole process."""

    @abstractmethod
    def reset_peak_memory(self) -> None:
        """Start measuring the peak from now on, where the system can."""

    @abstractmethod
    def synchronize(self) -> None:
        """Return when all work given to the device is done."""

    def dtype(self, precision: str) -> torch.dtype:
        """The dtype of `precision`.

        Raises:
            ValueError: the device does not compute in it.
        """
        supported = self.supported_precisions()
        if precision not in supported:
            raise ValueError(
                f"precision={precision!r}: {self.name()} ({self.device_type}) does not compute in it; "
                f"use one of {', '.join(supported)}"
            )
        return DTYPES[precision]
