"""Train the video transformer of the shapes model on cached latents."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig
from fastvideo.models.dits.wanvideo import WanBlock, WanTransformer3DModel
from fastvideo.models.encoders.t5 import UMT5EncoderModel
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.training.attention import use_matmul_attention
from fastvideo.training.flow_matching import flow_matching_loss, sample_euler, sample_sigmas
from fastvideo.training.optimizer import MuonAdamW
from fastvideo.training.trainer import Metrics, StepInfo, Trainer, TrainerConfig, autocast, device_of
from recipes.shapes.captions import caption
from recipes.shapes.evaluate import accuracy, held_out_prompts, judge
from recipes.shapes.latents import LatentCache
from recipes.shapes.train_vae import LATENT_CHANNELS, ClipShape

ARCH = WanVideoArchConfig(
    num_attention_heads=8,
    attention_head_dim=32,
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    text_dim=128,
    freq_dim=256,
    ffn_dim=1024,
    num_layers=7,
)
SHIFT = 3.0
TEXT_MULTIPLE = 32
CAPTION_DROPOUT = 0.1
"""Share of captions replaced by the empty one, which guidance steers away from."""


@dataclass(frozen=True)
class Ingredient:
    """A kind of batch, and its share of the steps at the start and at the end of training."""

    shape: ClipShape
    first_share: float
    last_share: float


@dataclass(frozen=True)
class Setup:
    """What a run of one length and size needs; another run differs in this and nothing else."""

    ingredients: tuple[Ingredient, ...]
    steps: int
    lr: float = 2e-3


SETUP_96 = Setup(
    ingredients=(
        Ingredient(ClipShape(64, 1, 96), 0.7, 0.15),
        Ingredient(ClipShape(24, 9, 96), 0.3, 0.3),
        Ingredient(ClipShape(14, 17, 96), 0.0, 0.45),
        Ingredient(ClipShape(6, 33, 96), 0.0, 0.05),
        Ingredient(ClipShape(4, 49, 96), 0.0, 0.05),
    ),
    steps=5700,
)
RAMP = 0.2
"""The share of training over which the ingredients go from their first to their last share."""


def pick(setup: Setup, info: StepInfo, available: Callable[[Ingredient], bool]) -> Ingredient:
    """The ingredient of this step, drawn by its present share."""
    mix = min(1.0, info.progress / RAMP)
    shares = np.array(
        [(1 - mix) * i.first_share + mix * i.last_share if available(i) else 0.0 for i in setup.ingredients]
    )
    return setup.ingredients[info.rng.choice(len(shares), p=shares / shares.sum())]


def initialize(dit: WanTransformer3DModel) -> None:
    """Small weights, and gates and output that start at zero (adaLN-zero of DiT, arXiv 2212.09748)."""
    for name, parameter in dit.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias") or "modulation" in name:
            torch.nn.init.zeros_(parameter)
    torch.nn.init.zeros_(dit.proj_out.weight)
    torch.nn.init.zeros_(dit.time_proj.weight)
    with torch.no_grad():
        for block in dit.blocks:
            assert isinstance(block, WanBlock)
            # shift, scale and gate, twice: gates of 0.1 let gradients through from the first step
            block.modulation[:, (2, 5)] = 0.1


def conditions(encoder: UMT5EncoderModel, captions: list[str]) -> dict[str, Any]:
    """The transformer's keywords for `captions`; the text has always the same length, for the compiler's sake."""
    with torch.no_grad():
        text = encoder(captions)
    missing = -text.states.shape[1] % TEXT_MULTIPLE
    return {"text": F.pad(text.states, (0, 0, 0, missing)), "text_padding": text.padding - missing}


@torch.no_grad()
def sample_clips(
    dit: WanTransformer3DModel,
    encoder: UMT5EncoderModel,
    vae: AutoencoderKLWan,
    prompts: list[str],
    frames: int = 17,
    size: int = 96,
    steps: int = 20,
    guidance: float = 3.0,
) -> list[torch.Tensor]:
    """One clip, uint8 [T, H, W, 3], for each prompt."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(prompts), LATENT_CHANNELS, 1 + (frames - 1) // 4, size // 8, size // 8, generator=generator)
    both = conditions(encoder, [*prompts, *[""] * len(prompts)])

    def velocity(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        with autocast(dit):
            v, v_empty = dit(latents.repeat(2, 1, 1, 1, 1), timesteps.repeat(2), **both).float().chunk(2)
        return v_empty + guidance * (v - v_empty)

    latents = sample_euler(velocity, noise.to(device_of(dit)), steps, SHIFT)
    videos = [vae.decode(one[None])[0].cpu() for one in latents]
    return [((video / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0) for video in videos]


def train(
    output_dir: Path,
    setup: Setup,
    vae: AutoencoderKLWan,
    encoder: UMT5EncoderModel,
    cache_dir: Path,
    init: Path | None = None,
    compile_blocks: bool = True,
) -> WanTransformer3DModel:
    """Train the transformer; the average of its parameters is returned. `init` is a checkpoint to start from."""
    torch.manual_seed(0)
    dit = WanTransformer3DModel(ARCH)
    initialize(dit)
    device = device_of(encoder)
    dit.to(device)
    if device.type == "cpu":
        use_matmul_attention(dit)
    if init is not None:
        dit.load_state_dict(torch.load(init, weights_only=True))
    if compile_blocks:
        for block in dit.blocks:
            block.compile(dynamic=False)
    caches = {i: LatentCache(cache_dir, i.shape) for i in setup.ingredients}

    def loss(info: StepInfo) -> tuple[torch.Tensor, Metrics]:
        if info.step % 50 == 0:
            for cache in caches.values():
                cache.refresh()
        ingredient = pick(setup, info, lambda i: len(caches[i]) > 0)
        latents, scenes = caches[ingredient].batch(info.rng, ingredient.shape.batch)
        latents = latents.to(device)
        captions = ["" if info.rng.random() < CAPTION_DROPOUT else caption(scene, info.rng) for scene in scenes]
        inputs = conditions(encoder, captions)
        losses = flow_matching_loss(
            lambda x, t: dit(x, t, **inputs), latents, sample_sigmas(len(latents), SHIFT, device)
        )
        return losses.mean(), {f"loss_{ingredient.shape.frames}": losses.mean().item()}

    def evaluate(step: int) -> Metrics:
        pairs = held_out_prompts(24)
        clips = sample_clips(dit, encoder, vae, [prompt for _, prompt in pairs])
        torch.save(clips, output_dir / "clips.pt")
        return accuracy([judge(clip) for clip in clips], [scene for scene, _ in pairs])

    config = TrainerConfig(
        output_dir=output_dir, steps=setup.steps, lr=setup.lr, ema_decay=0.998, weight_decay=0.01, cooldown=0.4
    )
    optimizer = MuonAdamW(dit, dit.blocks, setup.lr, weight_decay=config.weight_decay)
    trainer = Trainer(dit, config, loss, evaluate, evaluate_every=500, optimizer=optimizer)
    trainer.run()
    trainer.ema.copy_to(dit)
    return dit
