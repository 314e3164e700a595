"""The perceptron: the product with its activation in one is the two after each other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.layers.mlp import MLP, can_fuse, linear_gelu


def perceptron(dtype: torch.dtype, act: str = "gelu_tanh") -> tuple[MLP, torch.Tensor]:
    """One with an input [2, 7, 24]."""
    torch.manual_seed(3)
    return MLP(24, 50, 10, act).to(dtype).requires_grad_(False), 3 * torch.randn(2, 7, 24).to(dtype)


def error(out: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference, over the largest magnitude."""
    return ((out.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@torch.no_grad()
def test_the_activation_in_the_product(dtype: torch.dtype, bound: float) -> None:
    mlp, x = perceptron(dtype)
    assert can_fuse(mlp.fc_in, x)
    exact = F.gelu(F.linear(x.double(), mlp.fc_in.weight.double(), mlp.fc_in.bias.double()), approximate="tanh")
    fused = linear_gelu(mlp.fc_in, x)
    assert fused.dtype == dtype
    assert fused.shape == (2, 7, 50)
    assert error(fused, exact) < bound
    # in bf16, what is rounded once is no worse than what is rounded twice
    if dtype == torch.bfloat16:
        assert error(fused, exact) <= error(F.gelu(mlp.fc_in(x), approximate="tanh"), exact)


@torch.no_grad()
def test_what_lies_beside_the_product_is_not_left_out() -> None:
    mlp, x = perceptron(torch.float32)
    before = mlp(x)
    mlp.fc_in.register_forward_hook(lambda layer, args, y: y + 1)
    assert not can_fuse(mlp.fc_in, x)
    assert not torch.allclose(mlp(x), before)
    mlp.fc_in = nn.Linear(24, 50)  # type: ignore[assignment]
    assert not can_fuse(mlp.fc_in, x)


def test_gradients_flow() -> None:
    mlp, x = perceptron(torch.float32)
    mlp(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


@torch.no_grad()
def test_other_activations() -> None:
    mlp, x = perceptron(torch.float32, "silu")
    assert torch.equal(mlp(x), mlp.fc_out(F.silu(mlp.fc_in(x))))


def test_autocast_runs_unfused():
    torch.manual_seed(0)
    mlp = MLP(16, 64, 16, act="gelu_tanh").eval()
    x = torch.randn(3, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not can_fuse(mlp.fc_in, x)
        out = mlp(x.bfloat16())
    assert out.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(out.float(), mlp(x), rtol=2e-2, atol=2e-2)
