"""Train the VAE of the shapes model: first on single frames, then on clips.

From default initialisation this VAE sits on a plateau: its per-pixel norm drops magnitudes, and only the sign of the
brightness gets through. `initialize` starts it beyond that plateau.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.configs.models.vaes.wanvae import WanVAEArchConfig
from fastvideo.models.vaes.wanvae import (
    AttentionBlock,
    AutoencoderKLWan,
    CausalConv3d,
    Downsample,
    Past,
    ResidualBlock,
    Upsample,
)
from fastvideo.training.trainer import Metrics, StepInfo, Trainer, TrainerConfig, device_of
from recipes.shapes.world import Scene, held_out_combos, render, sample_scene, training_combos, trajectory

LATENT_CHANNELS = 8
ARCH = WanVAEArchConfig(
    base_dim=16,
    z_dim=LATENT_CHANNELS,
    num_res_blocks=1,
    latents_mean=(0.0,) * LATENT_CHANNELS,
    latents_std=(1.0,) * LATENT_CHANNELS,
)
KL_WEIGHT = 1e-4
INITIAL_LOG_VARIANCE = -6.0
RANDOM_COLOURS = 0.7
"""Share of scenes in colours drawn from the whole cube. With the few named colours alone the VAE settles on a line
through them, on which green and blue, or purple and gray, are one."""
TWO_OBJECTS = 0.25
"""Share of scenes with two objects, which are smaller."""
SPINNING = 0.4
"""Share of scenes with a first object that spins, where it is raised: a star turns by two thirds of its symmetry in the
four frames of a latent one, and without more of them it comes out as a disc."""


@dataclass(frozen=True)
class ClipShape:
    """A batch of clips; `crop` is the side of the square that is cut out of each around one of its objects."""

    batch: int
    frames: int
    size: int
    crop: int | None = None


IMAGES = ClipShape(12, 1, 64)
CLIPS = (ClipShape(4, 9, 64), ClipShape(2, 17, 64), ClipShape(2, 9, 96))
CROPS = (ClipShape(3, 9, 128, 80), ClipShape(1, 25, 128, 80), ClipShape(2, 13, 128, 80), ClipShape(2, 9, 96))
"""Clips as large as those that the model is for, where there is something to see."""


def _bias(conv: nn.Conv2d | nn.Conv3d) -> torch.Tensor:
    assert conv.bias is not None
    return conv.bias


def _silence(conv: nn.Module) -> None:
    """Make `conv` give zeros."""
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(_bias(conv))


def _pass_through(conv: CausalConv3d, gain: float = 1.0) -> None:
    """An orthogonal map of each position's channels in the last frame: nothing of a flat colour is lost on the way."""
    nn.init.zeros_(conv.weight)
    _, height, width = conv.kernel_size
    conv.weight.data[:, :, -1, height // 2, width // 2] = nn.init.orthogonal_(
        torch.empty(conv.out_channels, conv.in_channels), gain
    )


def initialize(vae: AutoencoderKLWan) -> None:
    """Orthogonal layers on the main path, identity resampling, silent residual branches, biased first layers, time
    kernels that see the last frame, and a quiet posterior.

    With the default initialisation the colours arrive at the latents a hundred times smaller than they left; what
    then grows first is the brightness, and the rest stays below the noise.
    """
    for module in vae.modules():
        if isinstance(module, CausalConv3d) and module.kernel_size[0] == 3:
            module.weight.data[:, :, :-1] = 0
        if isinstance(module, ResidualBlock):
            _silence(module.conv2)
            if module.conv_shortcut is not None:
                _pass_through(module.conv_shortcut)
        elif isinstance(module, AttentionBlock):
            _silence(module.proj)
        elif isinstance(module, Downsample | Upsample):
            resample = module.resample[1]
            assert isinstance(resample, nn.Conv2d)
            _silence(resample)
            nn.init.dirac_(resample.weight)
            if module.time_conv is not None:
                weight = module.time_conv.weight.data
                weight.zero_()
                for copy in weight[:, :, -1, 0, 0].split(weight.shape[1]):
                    copy.fill_diagonal_(1)
                _bias(module.time_conv).data.zero_()
    for half in (vae.encoder, vae.decoder):
        nn.init.normal_(_bias(half.conv_in), std=0.5)
        _pass_through(half.conv_in, gain=1.5)
        _pass_through(half.conv_out)
    _pass_through(vae.post_quant_conv)
    mean, log_variance = vae.quant_conv.weight.data.chunk(2)
    nn.init.dirac_(mean)
    log_variance.zero_()
    _bias(vae.quant_conv).data.zero_()[vae.arch.z_dim :] = INITIAL_LOG_VARIANCE


def clip_of(
    scene: Scene, shape: ClipShape, rng: np.random.Generator, palette: Sequence[tuple[int, int, int]] | None = None
) -> torch.Tensor:
    """`scene` as uint8 [T, H, W, 3]; a single frame is any of a longer clip's: they must not all be first frames."""
    if shape.frames > 1:
        return render(scene, shape.size, shape.size, shape.frames, palette)
    at = int(rng.integers(17))
    return render(scene, shape.size, shape.size, 17, palette)[at : at + 1]


def as_video(clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """uint8 clips [T, H, W, 3] as the VAE takes them: fp32 [B, 3, T, H, W] in [-1, 1]."""
    return torch.stack(tuple(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def cut_out(clip: torch.Tensor, scene: Scene, side: int, rng: np.random.Generator) -> torch.Tensor:
    """A square of `clip` [T, H, W, 3] that has the middle of one of the objects, in one of the frames, in it."""
    frames, height, width = clip.shape[:3]
    item, at = scene.objects[rng.integers(len(scene.objects))], rng.integers(frames)
    path = trajectory(item, frames)
    middle = (height / 2 + min(height, width) * path.y[at], width / 2 + min(height, width) * path.x[at])
    starts = [
        int(np.clip(place - rng.uniform(0.2, 0.8) * side, 0, length - side))
        for place, length in zip(middle, (height, width), strict=True)
    ]
    return clip[:, starts[0] : starts[0] + side, starts[1] : starts[1] + side]


def batch_of_clips(
    rng: np.random.Generator,
    shape: ClipShape,
    two_objects: float = TWO_OBJECTS,
    random_colours: float = RANDOM_COLOURS,
    spinning: float = 0.0,
) -> torch.Tensor:
    """Random training clips [B, 3, T, H, W] in [-1, 1]; `spinning` is the share to which clips that spin are raised."""
    clips = []
    turning = [combo for combo in training_combos() if combo[2] == "spinning" and combo[0] != "circle"]
    for _ in range(shape.batch):
        combo = turning[rng.integers(len(turning))] if rng.random() < spinning else None
        scene = sample_scene(rng, combo, objects=1 + int(rng.random() < two_objects))
        palette = None
        if rng.random() < random_colours:
            palette = [tuple(rng.integers(256, size=3).tolist()) for _ in range(1 + len(scene.objects))]
        clip = clip_of(scene, shape, rng, palette)
        clips.append(clip if shape.crop is None else cut_out(clip, scene, shape.crop, rng))
    return as_video(clips)


def vae_loss(
    vae: AutoencoderKLWan, video: torch.Tensor, train_encoder: bool, noise: float = 0.0
) -> tuple[torch.Tensor, Metrics]:
    """Absolute and squared error of the reconstruction, and the KL divergence of the posterior (VAE, 1312.6114).

    Up to `noise` standard deviations are added to the latents: those that a transformer draws are not exact either, and
    the decoder is to make clean edges of them.
    """
    with torch.set_grad_enabled(train_encoder):
        mean, log_variance = vae.moments(video, Past()).float().chunk(2, dim=1)
    log_variance = log_variance.clamp(-20, 10)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    if noise:
        level = noise * torch.rand(len(mean), 1, 1, 1, 1, device=mean.device)
        latents = latents + level * mean.detach().std(dim=(0, 2, 3, 4), keepdim=True) * torch.randn_like(mean)
    error = vae.frames(latents, Past()).float() - video
    absolute, squared = error.abs().mean(), error.square().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = absolute + 2 * squared + (KL_WEIGHT * kl if train_encoder else 0.0)
    return loss, {"psnr": (10 * torch.log10(4 / squared)).item(), "kl": kl.item()}


def reconstruction_psnr(
    vae: AutoencoderKLWan, clips: int = 12, frames: int = 25, size: int = 128, objects: int = 1
) -> float:
    """Mean PSNR in dB over clips of combinations that training never shows."""
    rng = np.random.default_rng(7)
    combos = held_out_combos()
    values = []
    for index in range(clips):
        clip = render(sample_scene(rng, combos[index * 7 % len(combos)], objects), size, size, frames)
        video = as_video([clip]).to(device_of(vae))
        error = F.mse_loss(vae.decode(vae.encode(video)).float(), video)
        values.append(10 * torch.log10(4 / error).item())
    return float(np.mean(values))


def channels_last(vae: AutoencoderKLWan) -> None:
    """Lay the convolution weights out as the activations are."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Stage:
    """A part of the training: which clips (in turn), how many steps, and whether the encoder learns too."""

    name: str
    shapes: tuple[ClipShape, ...]
    steps: int
    lr: float
    train_encoder: bool = True
    two_objects: float = TWO_OBJECTS
    random_colours: float = RANDOM_COLOURS
    noise: float = 0.0
    spinning: float = 0.0
    cooldown: float = 1.0


# 1e-3 is right for frames and too much for clips, whose batches are small: the picture falls apart
STAGES = (
    Stage("images", (IMAGES,), 900, 1e-3),
    Stage("clips", CLIPS, 3000, 3e-4),
    # small objects that move are what is hard
    Stage(
        "crops", CROPS, 4000, 2.5e-4, two_objects=0.6, random_colours=0.4, noise=0.15, spinning=SPINNING, cooldown=0.7
    ),
)
DECODER_STAGE = Stage(
    "decoder", CROPS, 4000, 2.5e-4, False, two_objects=0.6, random_colours=0.3, noise=0.2, spinning=SPINNING
)


def clips_of(stage: Stage, info: StepInfo) -> torch.Tensor:
    """The clips of a step."""
    shape = stage.shapes[info.step % len(stage.shapes)]
    return batch_of_clips(info.rng, shape, stage.two_objects, stage.random_colours, stage.spinning)


def run_stage(vae: AutoencoderKLWan, stage: Stage, output_dir: Path, scale: float) -> None:
    """Train through `stage`, to the average of its parameters. `scale` is the share of the steps to take."""
    for half in (vae.encoder, vae.quant_conv):
        half.requires_grad_(stage.train_encoder)

    def loss(info: StepInfo) -> tuple[torch.Tensor, Metrics]:
        video = clips_of(stage, info).to(device_of(vae))
        return vae_loss(vae, video, stage.train_encoder, stage.noise)

    def evaluate(step: int) -> Metrics:
        frames = 1 if stage.name == "images" else 25
        pairs = reconstruction_psnr(vae, frames=frames, objects=2)
        return {"heldout_psnr": reconstruction_psnr(vae, frames=frames), "heldout_psnr_2": pairs}

    config = TrainerConfig(
        output_dir=output_dir / stage.name,
        steps=int(stage.steps * scale),
        lr=stage.lr,
        cooldown=stage.cooldown,
        # batches of clips are small and their gradients noisy
        betas=(0.9, 0.99),
        seed=len(stage.name),
    )
    trainer = Trainer(vae, config, loss, evaluate, evaluate_every=1000)
    trainer.run()
    trainer.ema.copy_to(vae)


def train(output_dir: Path, scale: float = 1.0, device: str = "cpu") -> AutoencoderKLWan:
    """Single frames, then clips, then larger ones where there is something to see."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(ARCH)
    initialize(vae)
    vae.to(device)
    channels_last(vae)
    for stage in STAGES:
        run_stage(vae, stage, output_dir, scale)
    return vae


def train_decoder(output_dir: Path, vae: AutoencoderKLWan, scale: float = 1.0) -> AutoencoderKLWan:
    """The decoder alone, on a frozen encoder: it can go on while a transformer trains on the latents."""
    channels_last(vae)
    run_stage(vae, DECODER_STAGE, output_dir, scale)
    return vae
