"""Backends of packages that are not installed here: what is refused, and how the packages are called."""

import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastvideo.attention.backends.base import AttentionBackend, AttentionCall
from fastvideo.attention.backends.flash_attn import FlashBackend
from fastvideo.attention.backends.sage_attn import SageBackend, SageThreeBackend
from tests.attention.plain import dense

HALF: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16, "head_dim": 64, "video": True}
BACKENDS: tuple[type[AttentionBackend], ...] = (FlashBackend, SageBackend, SageThreeBackend)


def package(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """Let `name` be a package with `functions`."""
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def gpu(monkeypatch: pytest.MonkeyPatch, *capability: int) -> None:
    """Let there be a GPU of `capability`."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


@pytest.mark.parametrize(
    ("backend", "changes", "capability", "reason"),
    [
        (FlashBackend, {}, (9, 0), None),
        (FlashBackend, {"device": "mps"}, (9, 0), "has kernels for CUDA alone, and this is mps"),
        (FlashBackend, {"dtype": torch.float32}, (9, 0), "computes in bf16 and fp16, not in float32"),
        (FlashBackend, {"has_bias": True}, (9, 0), "takes neither a bias nor a causal mask here"),
        (FlashBackend, {"head_dim": 20}, (9, 0), "takes heads of a multiple of 8 up to 256, not of 20"),
        (FlashBackend, {"logsumexp": True}, (9, 0), None),
        (FlashBackend, {}, (7, 5), "needs a GPU of compute capability 8.0 or above"),
        (SageBackend, {}, (8, 9), None),
        (SageBackend, {"head_dim": 80}, (8, 9), "takes heads of 64, 96, 128, not of 80"),
        (
            SageBackend,
            {"logsumexp": True},
            (8, 9),
            "gives no log-sum-exp, which ring attention needs; use ulysses_size",
        ),
        (SageThreeBackend, {}, (9, 0), "needs a GPU of compute capability 10.0 or above"),
        (SageThreeBackend, {}, (12, 0), None),
    ],
)
def test_what_they_take(
    monkeypatch: pytest.MonkeyPatch, backend: type[AttentionBackend], changes: Any, capability: Any, reason: str | None
) -> None:
    gpu(monkeypatch, *capability)
    package(monkeypatch, "sageattention")
    package(monkeypatch, "sageattn3")
    found = backend().why_not(AttentionCall(**{**HALF, **changes}))
    assert found is None if reason is None else found is not None and found.startswith(reason)


@pytest.mark.parametrize(("backend", "name"), [(SageBackend, "sageattention"), (SageThreeBackend, "sageattn3")])
def test_a_package_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, backend: type[AttentionBackend], name: str
) -> None:
    monkeypatch.setattr("fastvideo.attention.backends.sage_attn.find_spec", lambda package: None)
    reason = backend().why_not(AttentionCall(**HALF))
    assert reason is not None
    assert reason.startswith(f"needs the package {name}, which is not installed; ")


def by_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Attention of [B, heads, L, D]."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def by_length(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Attention of [B, L, heads, D]."""
    return by_heads(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale).transpose(1, 2)


def test_layouts_and_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 7, 3, 16, generator=generator).unbind()
    gpu(monkeypatch, 9, 0)
    called: list[str] = []

    def flash(version: str, also: tuple[Any, ...]) -> Any:
        def attend(q: Any, k: Any, v: Any, softmax_scale: float | None = None) -> Any:
            called.append(version)
            made = by_length(q, k, v, softmax_scale)
            return (made, *also) if also else made

        return attend

    def sage(q: Any, k: Any, v: Any, tensor_layout: str, is_causal: bool, sm_scale: float | None) -> torch.Tensor:
        assert (tensor_layout, is_causal) == ("NHD", False)
        called.append("sage")
        return by_length(q, k, v, sm_scale)

    def sage_three(q: Any, k: Any, v: Any, is_causal: bool) -> torch.Tensor:
        assert not is_causal
        called.append("sage 3")
        return by_heads(q, k, v)

    package(monkeypatch, "flash_attn", flash_attn_func=flash("2", ()))
    package(monkeypatch, "sageattention", sageattn=sage)
    package(monkeypatch, "sageattn3", sageattn3_blackwell=sage_three)
    for backend in BACKENDS:
        torch.testing.assert_close(backend()(q, k, v), dense(q, k, v))
    # version 3 is for Hopper, and early releases of it give a log-sum-exp too
    package(monkeypatch, "flash_attn_interface", flash_attn_func=flash("3", (None,)))
    torch.testing.assert_close(FlashBackend()(q, k, v), dense(q, k, v))
    gpu(monkeypatch, 10, 0)
    FlashBackend()(q, k, v)
    assert called == ["2", "sage", "sage 3", "3", "2"]
    for backend in (FlashBackend, SageBackend):
        torch.testing.assert_close(backend()(q, k, v, scale=1.0), dense(q * 4, k, v))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_flash_on_a_gpu() -> None:
    q, k, v = torch.randn(3, 2, 300, 3, 64, device="cuda", dtype=torch.bfloat16).unbind()
    assert FlashBackend().why_not(AttentionCall(**HALF)) is None
    expected = dense(q.float(), k.float(), v.float())
    assert float((FlashBackend()(q, k, v) - expected).abs().max()) < 0.02  # of values around 1, in bf16
