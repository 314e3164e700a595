"""The ways to hold the weights of linear layers in fewer bits: what each is, and what it can run on. Data only."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """One way. The scales of a weight are beside its numbers, in fp32."""

    description: str
    bits: int
    """Of each number."""
    group: int | None = None
    """Numbers that share a scale; None is a row of the weight."""
    devices: tuple[str, ...]
    """Types of device that it was made to run on."""
    why_not_elsewhere: str = "has not been tested there"
    precisions: tuple[str, ...] = ("fp32", "bf16")
    """Of the layers' inputs and outputs."""
    multiple: int = 1
    """What both sizes of a weight must be multiples of."""
    capability: tuple[int, int] | None = None
    """The least of a CUDA device."""
    unpacks: bool = True
    """Whether a layer makes its weight in the precision for its product."""
    psnr: float | None = None
    """dB to the clip of whole weights in fp32, where it was measured: see `docs/quantization.md`."""

    def bytes_of(self, rows: int, columns: int) -> int:
        """Of a weight of that shape, about."""
        numbers = rows * columns
        return numbers * self.bits // 8 + 4 * (numbers // self.group if self.group else rows)


QUANTIZATIONS: Mapping[str, Quantization] = {
    "int8": Quantization(
        description="weights in INT8, a scale a row; products in the precision",
        bits=8,
        psnr=56.0,
        devices=("cpu", "cuda"),
    ),
    "int8_dynamic": Quantization(
        description="weights and inputs in INT8, a scale a row of either; products in INT8",
        bits=8,
        unpacks=False,
        psnr=51.8,
        devices=("cpu", "cuda"),
    ),
    "fp8": Quantization(
        description="weights in FP8 (e4m3), a scale a row; products in the precision",
        bits=8,
        psnr=46.8,
        devices=("cpu", "cuda"),
        precisions=("fp32", "bf16", "fp16"),
    ),
    "fp8_dynamic": Quantization(
        description="weights and inputs in FP8 (e4m3), a scale a row of either; products in FP8",
        bits=8,
        devices=("cuda",),
        why_not_elsewhere="its products need a CUDA device of compute capability 8.9 or more",
        precisions=("bf16",),
        multiple=16,
        capability=(8, 9),
        unpacks=False,
    ),
    "nf4": Quantization(
        description="weights in the 4 bits of NF4, a scale for 64; products in the precision",
        bits=4,
        group=256,  # a byte for 64 numbers, which is what fp32 for 256 takes
        psnr=33.6,
        devices=("cpu", "cuda"),
        precisions=("fp32", "bf16", "fp16"),
    ),
}
"""By the name that the options `quantization` and `text_encoder_quantization` take."""
BF16_PSNR = 54.5
"""The same of whole weights in bf16."""
