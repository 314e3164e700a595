"""Quantized linear layers: the weights are what the formulas say, whatever `torchao` does on the way."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from fastvideo.configs.quantization import QUANTIZATIONS
from fastvideo.layers.int8 import ROWS, Int8Weight, rounded
from fastvideo.layers.quantization import held_bytes, quantizer, why_not

CPU = torch.device("cpu")
ON_CPU = [name for name, what in QUANTIZATIONS.items() if "cpu" in what.devices]
NF4 = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626,
       0.7230, 1.0)  # fmt: skip
"""The codes of QLoRA (arXiv 2305.14314, appendix E), to four places, as torchao has them."""

pytest.importorskip("torchao", reason="needs the extra quant")


def linear(rows: int = 384, columns: int = 512, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Linear:
    """A random layer; rows differ in scale, so that one scale for all would show."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(columns, rows).requires_grad_(False)
    layer.weight.copy_(torch.randn(rows, columns, generator=generator) * torch.logspace(-2, 1, rows)[:, None])
    layer.bias.copy_(torch.randn(rows, generator=generator))
    return layer.to(dtype)


def expected_weight(method: str, weight: torch.Tensor) -> torch.Tensor:
    """`weight` rounded to what `method` can hold; the scales of NF4 are not rounded here."""
    largest = weight.abs().amax(1, keepdim=True)
    if method.startswith("int8"):
        scale = largest / 127.5
        return (weight / scale).round().clamp(-128, 127) * scale
    if method == "fp8":
        scale = largest / torch.finfo(torch.float8_e4m3fn).max
        return (weight / scale).to(torch.float8_e4m3fn).float() * scale
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    codes = torch.tensor(NF4)
    nearest = (blocks / scale).unsqueeze(-1).sub(codes).abs().argmin(-1)
    return (codes[nearest] * scale).view(weight.shape)


def weight_of(layer: nn.Linear) -> torch.Tensor:
    """What the quantized layer multiplies with, from its products with unit vectors."""
    return nn.functional.linear(torch.eye(layer.in_features), layer.weight).T


@pytest.mark.parametrize("method", ["int8", "fp8", "nf4"])
def test_weights_are_rounded_as_the_formula_says(method: str) -> None:
    layer = linear()
    weight = layer.weight.clone()
    expected = expected_weight(method, weight)
    quantizer(method)(layer)
    difference = (weight_of(layer) - expected).abs()
    largest = weight.abs().amax(1, keepdim=True)
    if method == "int8":
        # the largest of a row is a tie, which rounds either way
        assert (difference / largest).max() < 1.001 / 127.5
        assert (difference > 1e-6 * largest).sum() <= len(weight)
    elif method == "fp8":
        assert (difference / largest).max() < 1e-6
    else:
        # its scales are rounded to INT8 too, over a range that all rows share; the largest is up to a step short
        assert difference.max() < 1 / 128 * largest.max()


@pytest.mark.parametrize("method", ["int8", "fp8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_its_rounded_weight_and_its_bias(method: str, dtype: torch.dtype) -> None:
    layer = linear(dtype=dtype)
    quantizer(method)(layer)
    plain = nn.Linear(layer.in_features, layer.out_features).requires_grad_(False)
    plain.weight.copy_(nn.functional.linear(torch.eye(layer.in_features, dtype=dtype), layer.weight).T)
    plain.bias.copy_(layer.bias)
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = plain(x.float())
    error = (layer(x).float() - expected).norm() / expected.norm()
    assert error < (1e-6 if dtype == torch.float32 else 4e-3)
    assert layer(x).dtype == dtype


def test_dynamic_int8_rounds_the_rows_of_the_input_too() -> None:
    layer = linear()
    weight = expected_weight("int8", layer.weight.clone())
    quantizer("int8_dynamic")(layer)
    x = torch.randn(2, 20, layer.in_features, generator=torch.Generator().manual_seed(1))
    expected = nn.functional.linear(expected_weight("int8", x.flatten(0, 1)), weight, layer.bias).view(2, 20, -1)
    error = (layer(x) - expected).norm() / expected.norm()
    # ties, as above; rounding the weights alone is 0.004 off, and both 0.007
    assert error < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_products_on_a_cpu_are_those_of_the_rounded_numbers(dtype: torch.dtype) -> None:
    layer = linear().to(dtype)
    weight, weight_scale = rounded(layer.weight.float())
    quantizer("int8_dynamic")(layer)
    assert isinstance(layer.weight, Int8Weight)
    assert held_bytes(layer.weight) == weight.numel() + 4 * len(weight)
    # more rows than are multiplied at a time, one of them zero
    x = torch.randn(3, ROWS // 2, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0, 7] = 0
    numbers, scale = rounded(x.flatten(0, 1))
    exact = (numbers.double() * scale) @ (weight.double() * weight_scale).T + layer.bias.double()
    assert (numbers[7] == 0).all()
    assert (layer(x).flatten(0, 1).double() - exact).norm() < (1e-6 if dtype == torch.float32 else 3e-3) * exact.norm()
    assert layer(x).dtype == dtype


@pytest.mark.parametrize("shape", [(256, 64), (384, 512), (48, 1040)])
def test_nf4_is_that_of_torchao(shape: tuple[int, int]) -> None:
    from torchao.quantization.quantize_.workflows import to_nf4

    layer = linear(*shape)
    numbers = layer.weight.numel() // 64
    theirs = to_nf4(
        layer.weight.detach(), 64, 256 if numbers % 256 == 0 else 2 ** ((numbers & -numbers) - 1).bit_length()
    )
    quantizer("nf4")(layer)
    assert torch.equal(layer.weight.quantized_data, theirs.quantized_data)
    assert torch.equal(layer.weight.get_original_weight(), theirs.get_original_weight())


def test_nf4_of_zeros_is_zeros() -> None:
    layer = linear()
    layer.weight[:3] = 0
    quantizer("nf4")(layer)
    assert layer.weight.get_original_weight()[:3].abs().max() < 1e-6


@pytest.mark.parametrize("method", ON_CPU)
def test_the_bytes_held_are_those_foretold(method: str) -> None:
    layer = linear(1536, 2048, torch.bfloat16)
    quantizer(method)(layer)
    assert held_bytes(layer.weight) == pytest.approx(QUANTIZATIONS[method].bytes_of(1536, 2048), rel=0.01)


@pytest.mark.parametrize(
    ("method", "device", "precision", "message"),
    [
        ("fp8_dynamic", "cpu", "bf16", "compute capability 8.9 or more; use int8 or int8_dynamic or fp8 or nf4"),
        ("int8", "mps", "bf16", "has not been tested there; leave it None"),
        ("int8", "cpu", "fp16", "its products can overflow; use precision fp32 or bf16"),
        ("int8_dynamic", "cpu", "fp16", "can overflow"),
    ],
)
def test_what_cannot_run_has_a_reason(method: str, device: str, precision: str, message: str) -> None:
    assert message in str(why_not(method, torch.device(device), precision))


@pytest.mark.parametrize("method", ON_CPU)
def test_what_can_run_has_none(method: str) -> None:
    for precision in QUANTIZATIONS[method].precisions:
        assert why_not(method, CPU, precision) is None


def test_int8_in_fp16_does_overflow() -> None:
    # why it is refused: sums of products with numbers up to 127 leave fp16's range before they are scaled
    layer = linear().half()
    quantizer("int8")(layer)
    x = torch.full((1, layer.in_features), 30.0).half()
    layer.weight.qdata.fill_(127)
    assert not layer(x).isfinite().all()


def test_without_torchao_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ValueError, match=r"quantization='int8': .*; run pip install 'fastvideo\[quant\]'"):
        quantizer("int8")


def test_unknown_methods_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="'int_8': unknown quantization; did you mean 'int8'"):
        quantizer("int_8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", QUANTIZATIONS)
def test_on_a_gpu_the_error_is_that_on_a_cpu(method: str) -> None:
    reason = why_not(method, torch.device("cuda"), "bf16")
    if reason is not None:
        pytest.skip(reason)
    layer = linear(dtype=torch.bfloat16).cuda()
    x = torch.randn(64, layer.in_features, device="cuda", dtype=torch.bfloat16)
    expected: Any = layer.float()(x.float())
    layer = layer.bfloat16()
    quantizer(method)(layer)
    error = (layer(x).float() - expected).norm() / expected.norm()
    assert error < (0.15 if method == "nf4" else 0.06 if method == "fp8_dynamic" else 0.04)
