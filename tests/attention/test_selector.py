"""Choosing attention backends."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fastvideo.attention import selector
from fastvideo.attention.backends.base import AttentionBackend, AttentionCall
from fastvideo.attention.backends.sdpa import SDPABackend
from fastvideo.attention.layer import DistributedAttention, LocalAttention
from fastvideo.attention.selector import attention_backend_name, select_backend, set_attention_backend
from fastvideo.utils import resolve

CALL = AttentionCall(device="cpu", dtype=torch.float32, head_dim=20)


class Picky(SDPABackend):
    """A backend that runs without a bias only, and not in fp32."""

    name = "PICKY"

    def why_not(self, call: AttentionCall) -> str | None:
        if call.has_bias:
            return "takes no bias"
        return "does not compute in fp32" if call.dtype is torch.float32 else None


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(selector.BACKENDS, "PICKY", f"{__name__}:Picky")

    def find(reference: str) -> Any:
        return Picky if reference == f"{__name__}:Picky" else resolve(reference)

    monkeypatch.setattr(selector, "resolve", find)
    yield


@pytest.mark.parametrize("name", [None, "auto", "AUTO", "TORCH_SDPA", "torch_sdpa"])
def test_the_backend_that_runs_everywhere(name: str | None) -> None:
    assert isinstance(select_backend(name, CALL), SDPABackend)


NOT_HERE = {
    "FLASH_ATTN": "has kernels for CUDA alone, and this is cpu",
    "SAGE_ATTN": "has kernels for CUDA alone, and this is cpu",
    "SAGE_ATTN_THREE": "has kernels for CUDA alone, and this is cpu",
    "VIDEO_SPARSE_ATTN": "attends among the tokens of a video only",
    "SLIDING_TILE_ATTN": "needs to know its windows; set STA_window or mask_strategy_file_path",
    "VMOBA_ATTN": "attends among the tokens of a video only",
}


@pytest.mark.parametrize("name", NOT_HERE)
def test_names_that_cannot_run_say_why_and_list_what_runs(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}': {NOT_HERE[name]}; those that can run here: TORCH_SDPA; or 'auto'"):
        select_backend(name, CALL)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'TORCH_SDP': is no attention backend; did you mean 'TORCH_SDPA'\?"):
        select_backend("torch_sdp", CALL)


def test_the_environment_is_asked_when_there_is_no_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVIDEO_ATTENTION_BACKEND", "SAGE_ATTN")
    with pytest.raises(ValueError, match="SAGE_ATTN"):
        select_backend(None, CALL)
    assert select_backend("TORCH_SDPA", CALL).name == "TORCH_SDPA"
    assert select_backend("auto", CALL).name == "TORCH_SDPA"


@pytest.mark.usefixtures("picky")
def test_a_backend_that_cannot_run_the_call_says_why() -> None:
    with pytest.raises(ValueError, match="'PICKY': does not compute in fp32; those that can run here: TORCH_SDPA"):
        select_backend("PICKY", CALL)
    half = AttentionCall(device="cpu", dtype=torch.bfloat16, head_dim=20)
    assert select_backend("picky", half).name == "PICKY"


@pytest.mark.usefixtures("picky")
def test_auto_passes_over_what_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selector, "BACKENDS", dict(reversed(selector.BACKENDS.items())))
    assert select_backend("auto", CALL).name == "TORCH_SDPA"
    assert select_backend("auto", AttentionCall(device="cpu", dtype=torch.bfloat16, head_dim=20)).name == "PICKY"


@pytest.mark.usefixtures("picky")
def test_auto_with_nothing_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selector, "BACKENDS", {"PICKY": selector.BACKENDS["PICKY"]})
    with pytest.raises(ValueError, match="'auto': none can run"):
        select_backend("auto", CALL)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.local = LocalAttention()
        self.full = DistributedAttention()


@pytest.mark.usefixtures("picky")
def test_the_name_is_about_the_full_sequence_attention() -> None:
    model = Model()
    set_attention_backend(model, "PICKY", device="cpu", dtype=torch.bfloat16, head_dim=20)
    assert model.full.backend.name == "PICKY"
    assert model.local.backend.name == "TORCH_SDPA"
    assert attention_backend_name(model) == "PICKY"
    with pytest.raises(ValueError, match="does not compute in fp32"):
        set_attention_backend(model, "PICKY", device="cpu", dtype=torch.float32, head_dim=20)


def test_injection_is_per_layer() -> None:
    one, two = Model(), Model()
    set_attention_backend(one, None, device="cpu", dtype=torch.float32, head_dim=20)
    assert "backend" in vars(one.full)
    assert "backend" not in vars(two.full)


def test_a_model_without_attention() -> None:
    model = nn.Linear(2, 2)
    set_attention_backend(model, None, device="cpu", dtype=torch.float32, head_dim=2)
    assert attention_backend_name(model) is None


def test_every_backend_calls_itself_what_the_table_says() -> None:
    for name, reference in selector.BACKENDS.items():
        backend: AttentionBackend = selector.resolve(reference)()
        assert backend.name == name


def test_sdpa_is_softmax_attention() -> None:
    q, k, v = torch.randn(3, 2, 5, 3, 4, dtype=torch.float64)
    bias = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    logits = torch.einsum("blhd,bshd->bhls", q, k)
    expected = torch.einsum("bhls,bshd->blhd", (logits / 2 + bias).softmax(-1), v)
    torch.testing.assert_close(SDPABackend()(q, k, v, bias=bias), expected)
    torch.testing.assert_close(
        SDPABackend()(q, k, v, scale=1.0), torch.einsum("bhls,bshd->blhd", logits.softmax(-1), v)
    )
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    causal = (logits / 2).masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(SDPABackend()(q, k, v, causal=True), torch.einsum("bhls,bshd->blhd", causal, v))
