import pytest
import torch

from fastvideo.attention.backends.sdpa import SDPABackend
from fastvideo.training.attention import MatmulAttention
from fastvideo.training.flow_matching import flow_matching_loss, sample_euler, sample_sigmas, shift_sigmas


def test_the_shift_keeps_the_ends_and_moves_the_middle_towards_noise():
    shifted = shift_sigmas(torch.tensor([0.0, 0.5, 1.0]), 3.0)
    assert shifted.tolist() == pytest.approx([0.0, 0.75, 1.0])


def test_sampled_levels_are_shifted_logit_normal():
    torch.manual_seed(0)
    sigmas = sample_sigmas(20_000, shift=3.0)
    assert sigmas.min() > 0 and sigmas.max() < 1
    # the median of a logit-normal is 1/2, before the shift
    assert sigmas.median().item() == pytest.approx(0.75, abs=0.01)


def test_the_loss_of_the_true_velocity_is_zero_and_that_of_zero_is_its_power():
    torch.manual_seed(0)
    latents, sigmas = torch.zeros(3, 2, 2, 4, 4), torch.tensor([0.2, 0.5, 1.0])
    # data is zero, so the noise, which is the velocity, can be read off the input
    perfect = flow_matching_loss(lambda x, t: x * 1000 / t.view(-1, 1, 1, 1, 1), latents, sigmas)
    assert perfect.abs().max() < 1e-9
    assert flow_matching_loss(lambda x, t: torch.zeros_like(x), latents, sigmas).mean().item() == pytest.approx(
        1, abs=0.2
    )


def test_known_frames_have_no_noise_and_do_not_count():
    torch.manual_seed(0)
    latents, sigmas = torch.randn(2, 3, 4, 2, 2), torch.tensor([0.3, 0.9])
    seen = {}

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.update(x=x, t=t)
        wrong = torch.zeros_like(x)
        wrong[:, :, :1] = 100.0
        return wrong

    loss = flow_matching_loss(velocity, latents, sigmas, known_frames=1)
    assert torch.equal(seen["x"][:, :, 0], latents[:, :, 0]) and not torch.equal(seen["x"][:, :, 1], latents[:, :, 1])
    torch.testing.assert_close(seen["t"], torch.tensor([[0.0, 300, 300, 300], [0, 900, 900, 900]]))
    assert loss.shape == (2,) and loss.max() < 20


def test_euler_reaches_the_data_of_a_straight_flow():
    torch.manual_seed(0)
    data, noise = torch.randn(2, 1, 1, 2, 2), torch.randn(2, 1, 1, 2, 2)
    result = sample_euler(lambda x, t: noise - data, noise, steps=7, shift=3.0)
    torch.testing.assert_close(result, data)


@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_by_matrix_products_equals_the_fused_one(with_bias):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    bias = torch.randn(1, 1, 5, 7) if with_bias else None
    for scale in (None, 1.0):
        ours, fused = (b(q, k, v, bias=bias, scale=scale) for b in (MatmulAttention(), SDPABackend()))
        torch.testing.assert_close(ours, fused)
