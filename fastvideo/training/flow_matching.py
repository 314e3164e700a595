"""Flow matching with straight paths: the training objective of Wan.

Source: "Flow Matching for Generative Modeling" (arXiv 2210.02747); logit-normal timesteps and their shift from
"Scaling Rectified Flow Transformers" (arXiv 2403.03206), sections 3.1 and 5.3.2.
"""

from collections.abc import Callable

import torch

NUM_TRAIN_TIMESTEPS = 1000

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`velocity(latents [B, C, T, H, W], timesteps [B] or [B, T])`, noise minus data."""


def shift_sigmas(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Move `sigmas` in [0, 1] towards the noise for `shift` above 1."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sample_sigmas(count: int, shift: float, device: torch.device | None = None) -> torch.Tensor:
    """Logit-normal noise levels [count] in (0, 1), shifted."""
    return shift_sigmas(torch.sigmoid(torch.randn(count, device=device)), shift)


def flow_matching_loss(
    velocity: Velocity, latents: torch.Tensor, sigmas: torch.Tensor, known_frames: int = 0
) -> torch.Tensor:
    """Squared error [B] of the predicted velocity for `latents` [B, C, T, H, W] noised to levels `sigmas` [B].

    The first `known_frames` latent frames are given: they have no noise, their timestep is 0, and their error does not
    count. The timesteps are then [B, T], as in Wan 2.2 TI2V.
    """
    noise = torch.randn_like(latents)
    level = sigmas[:, None].expand(-1, latents.shape[2]).clone()
    level[:, :known_frames] = 0
    spread = level[:, None, :, None, None]
    noisy = (1 - spread) * latents + spread * noise
    timesteps = (level if known_frames else sigmas) * NUM_TRAIN_TIMESTEPS
    error = velocity(noisy, timesteps).float() - (noise - latents)
    return error[:, :, known_frames:].square().mean(dim=(1, 2, 3, 4))


@torch.no_grad()
def sample_euler(velocity: Velocity, noise: torch.Tensor, steps: int, shift: float) -> torch.Tensor:
    """Data from `noise` [B, C, T, H, W] by `steps` Euler steps: for looking at a model while it trains."""
    sigmas = shift_sigmas(torch.linspace(1, 0, steps + 1, device=noise.device), shift)
    latents = noise
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        timesteps = (now * NUM_TRAIN_TIMESTEPS).expand(len(noise))
        latents = latents + (after - now) * velocity(latents, timesteps).float()
    return latents
