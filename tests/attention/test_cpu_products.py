"""Attention in bf16 by two products, beside PyTorch's fused kernel and fp32."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from fastvideo.attention.backends import cpu_products
from fastvideo.attention.backends.sdpa import SDPABackend

has_products = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this CPU has no products in bf16",
)
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def tensors(length: int, keys: int, heads: int, dim: int, batch: int = 1, spread: float = 1.0) -> Tensors:
    """q, k, v as a stacked projection gives them: not contiguous. Logits have a standard deviation of `spread`."""
    generator = torch.Generator().manual_seed(length + keys + dim)
    stacked = [torch.randn(batch, n, 3, heads, dim, generator=generator) for n in (length, keys, keys)]
    q, k, v = (x[:, :, index].to(torch.bfloat16) for index, x in enumerate(stacked))
    return q * spread, k, v


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=scale).transpose(1, 2)


def error(x: torch.Tensor, exact: torch.Tensor) -> float:
    """The root mean square of the difference, over that of `exact`."""
    return ((x.float() - exact).square().mean() / exact.square().mean()).sqrt().item()


@has_products
@pytest.mark.parametrize("scale", [None, 0.05])
@pytest.mark.parametrize(
    ("length", "keys", "heads", "dim", "batch", "spread"),
    [(600, 600, 2, 128, 1, 1.0), (513, 777, 3, 64, 2, 1.0), (1030, 512, 1, 128, 1, 1.7), (512, 600, 2, 80, 1, 0.2)],
)
def test_it_is_as_exact_as_the_fused_kernel_nearly(
    length: int, keys: int, heads: int, dim: int, batch: int, spread: float, scale: float | None
) -> None:
    q, k, v = tensors(length, keys, heads, dim, batch, spread)
    exact = fused(q.float(), k.float(), v.float(), scale)
    made = cpu_products.attend(q, k, v, scale)
    assert made.dtype == torch.bfloat16 and made.shape == q.shape
    # one more rounding of the scaled queries, which counts as much as the one they came with, and one of the sums
    assert error(made, exact) < 2.0 * error(fused(q, k, v, scale), exact)


@has_products
def test_a_head_with_large_logits_goes_the_usual_way() -> None:
    q, k, v = tensors(512, 512, 3, 64)
    q[:, :, 1] *= 40
    made, usual = cpu_products.attend(q, k, v), fused(q, k, v)
    torch.testing.assert_close(made[:, :, 1], usual[:, :, 1], rtol=0.016, atol=4e-3)
    assert not torch.equal(made[:, :, 0], usual[:, :, 0])


@has_products
def test_the_bound_leaves_every_weight_normal() -> None:
    """Against the grain: one key is the opposite of the query, as far as the bound allows, another is the query."""
    direction = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(1)), dim=0)
    length = (cpu_products.LARGEST_BOUND * 0.98 * 8) ** 0.5
    q = (direction * length).to(torch.bfloat16).expand(1, 512, 1, 64)
    k = torch.cat((-q, q[:, :1]), dim=1)
    v = torch.cat((torch.zeros(1, 512, 1, 64), torch.ones(1, 1, 1, 64)), dim=1).to(torch.bfloat16)
    assert torch.allclose(cpu_products.attend(q, k, v).float(), torch.ones(1, 512, 1, 64), atol=1e-2)
    # and where all keys are opposite their weights are as small as they get, and still alike
    v = torch.full((1, 512, 1, 64), 3.0, dtype=torch.bfloat16)
    assert torch.allclose(cpu_products.attend(q, -q, v).float(), torch.full((1, 512, 1, 64), 3.0), atol=2e-2)


@has_products
def test_nan_is_handed_on() -> None:
    q, k, v = tensors(512, 512, 2, 64)
    q[0, 3, 1, 5] = float("nan")
    made = cpu_products.attend(q, k, v)
    assert made[0, 3, 1].isnan().all() and made[:, :, 0].isfinite().all()


@has_products
def test_compiled_code_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "HERE", True)
    q, k, v = tensors(520, 600, 2, 64)
    torch.library.opcheck(cpu_products.attend, (q, k, v, 0.1))
    calls: list[str] = []

    def graph(module: torch.fx.GraphModule, inputs: object) -> object:
        calls.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    compiled = torch.compile(SDPABackend().__call__, backend=graph, fullgraph=True)
    assert torch.equal(compiled(q, k, v), SDPABackend()(q, k, v))
    assert calls == ["fastvideo.attend_by_products.default"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dtype": torch.float32}, "fp32 is exact"),
        ({"length": 500}, "short"),
        ({"keys": 300}, "few keys"),
        ({"dim": 32}, "small heads"),
        ({"here": False}, "another CPU"),
    ],
)
def test_when_it_is_taken(monkeypatch: pytest.MonkeyPatch, change: dict[str, object], why: str) -> None:
    taken: list[bool] = []
    monkeypatch.setattr(cpu_products, "attend", lambda *args: taken.append(True) or args[0])

    def run(dtype: torch.dtype = torch.bfloat16, length: int = 600, keys: int = 600, dim: int = 64,
            here: bool = True) -> bool:  # fmt: skip
        monkeypatch.setattr(cpu_products, "HERE", here)
        taken.clear()
        SDPABackend()(*(x.to(dtype) for x in tensors(length, keys, 1, dim)))
        return bool(taken)

    assert run() and not run(**change), why  # type: ignore[arg-type]
    q, k, v = tensors(600, 600, 1, 64)
    taken.clear()
    SDPABackend()(q, k, v, causal=True)
    SDPABackend()(q, k, v, bias=torch.zeros(600, 600))
    with torch.enable_grad():
        SDPABackend()(q.clone().requires_grad_(), k, v)
        SDPABackend()(q, k, v.clone().requires_grad_())
    assert not taken


@has_products
@pytest.mark.parametrize(("amx", "bf16", "quick"), [(False, True, True), (True, True, False), (False, False, False)])
def test_where_it_is_quick(monkeypatch: pytest.MonkeyPatch, amx: bool, bf16: bool, quick: bool) -> None:
    """With AMX the fused kernel is quick, and without products in bf16 neither is."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert cpu_products.quick_here() == quick
