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
from fastvideo.training.trainer import Metrics, StepInfo, Trainer, TrainerConfig, autocast, averaged, device_of
from recipes.shapes import alignment
from recipes.shapes.alignment import AlignedDiT
from recipes.shapes.captions import caption
from recipes.shapes.evaluate import Prompt, accuracy, held_out_prompts, judge, judge_two
from recipes.shapes.latents import LatentCache
from recipes.shapes.train_vae import LATENT_CHANNELS, ClipShape, as_video
from recipes.shapes.world import render

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
    """A kind of batch: its clips, how many shards of them are cached, and its share of the steps at the start and at
    the end of training."""

    shape: ClipShape
    shards: int
    first_share: float
    last_share: float
    objects: int = 1


@dataclass(frozen=True)
class Setup:
    """What a run of one length and size needs; another run differs in this and nothing else."""

    name: str
    ingredients: tuple[Ingredient, ...]
    judged: ClipShape
    """What the clips that are judged during training are like, and how many are drawn at once."""
    steps: int
    lr: float
    known_frames: int = 0
    """Latent frames at the start that are given."""
    evaluate_every: int = 1000
    cooldown: float = 0.4
    """The share of the steps, at the end, over which the learning rate falls."""


SMALL = Setup(
    name="small",
    ingredients=(
        Ingredient(ClipShape(64, 1, 96), 48, 0.7, 0.15),
        Ingredient(ClipShape(24, 9, 96), 18, 0.3, 0.3),
        Ingredient(ClipShape(14, 17, 96), 22, 0.0, 0.45),
        Ingredient(ClipShape(6, 33, 96), 3, 0.0, 0.05),
        Ingredient(ClipShape(4, 49, 96), 2, 0.0, 0.05),
    ),
    judged=ClipShape(8, 17, 96),
    steps=5700,
    lr=2e-3,
)
"""One object in small clips: a third of the work of the clips that the model is for."""
PAIRS = Setup(
    name="pairs",
    ingredients=(
        Ingredient(ClipShape(64, 1, 96), 8, 0.10, 0.03, objects=2),
        Ingredient(ClipShape(40, 9, 96), 40, 0.65, 0.50, objects=2),
        Ingredient(ClipShape(24, 17, 96), 24, 0.10, 0.32, objects=2),
        Ingredient(ClipShape(24, 17, 96), 8, 0.15, 0.15),
    ),
    judged=ClipShape(8, 17, 96),
    steps=2200,
    lr=1.5e-3,
    evaluate_every=500,
    cooldown=0.0,
)
"""Two objects in small clips. Which words belong together is learned from many pairs, and a step shows four times as
many here as in the clips that the model is for. `FULL` goes on at the same learning rate."""
FULL = Setup(
    name="full",
    ingredients=(
        Ingredient(ClipShape(70, 1, 128), 10, 0.02, 0.02),
        Ingredient(ClipShape(70, 1, 128), 10, 0.03, 0.10, objects=2),
        Ingredient(ClipShape(24, 9, 128), 8, 0.10, 0.03),
        Ingredient(ClipShape(24, 9, 128), 12, 0.25, 0.15, objects=2),
        Ingredient(ClipShape(10, 25, 128), 20, 0.30, 0.15),
        Ingredient(ClipShape(10, 25, 128), 26, 0.20, 0.40, objects=2),
        Ingredient(ClipShape(24, 17, 96), 8, 0.05, 0.02),
        Ingredient(ClipShape(5, 49, 128), 4, 0.02, 0.03),
        Ingredient(ClipShape(5, 49, 128), 3, 0.01, 0.04, objects=2),
        Ingredient(ClipShape(10, 9, 192), 4, 0.01, 0.03),
        Ingredient(ClipShape(10, 9, 192), 4, 0.01, 0.03, objects=2),
    ),
    judged=ClipShape(8, 25, 128),
    steps=2500,
    lr=1.5e-3,
)
"""One and two objects at every size and length that the model is for, from the averaged weights of `PAIRS`."""
IMAGE = Setup(
    name="image",
    ingredients=tuple(ingredient for ingredient in FULL.ingredients if ingredient.shape.frames > 1),
    judged=FULL.judged,
    steps=1200,
    lr=1e-3,
    known_frames=1,
)
"""The companion that is given the first frame, on the latents of `FULL` and from its averaged weights."""
SETUPS = (SMALL, PAIRS, FULL, IMAGE)
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
    prompts: list[Prompt],
    setup: Setup,
    steps: int = 12,
    guidance: float = 3.0,
) -> list[torch.Tensor]:
    """One clip, uint8 [T, H, W, 3], for each prompt; where the first frame is given, it is the scene's."""
    shape, device, known = setup.judged, device_of(dit), setup.known_frames
    noise = torch.randn(
        len(prompts), LATENT_CHANNELS, 1 + (shape.frames - 1) // 4, shape.size // 8, shape.size // 8,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    both = conditions(encoder, [*(caption for _, caption in prompts), *[""] * len(prompts)])
    first = as_video([render(scene, shape.size, shape.size, shape.frames)[:1] for scene, _ in prompts])
    given = vae.encode(first.to(device))[:, :, :known]

    def velocity(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        if known:
            latents = torch.cat((given, latents[:, :, known:]), dim=2)
            timesteps = timesteps[:, None].repeat(1, latents.shape[2])
            timesteps[:, :known] = 0
        with autocast(dit):
            v, v_empty = dit(torch.cat([latents] * 2), torch.cat([timesteps] * 2), **both).float().chunk(2)
        return v_empty + guidance * (v - v_empty)

    latents = sample_euler(velocity, noise.to(device), steps, SHIFT)
    latents = torch.cat((given, latents[:, :, known:]), dim=2)
    with autocast(vae):
        videos = [vae.decode(one[None])[0].float().cpu() for one in latents]
    return [((video / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0) for video in videos]


def checkpoint(work: Path, setup: Setup) -> Path:
    """Where training leaves its state."""
    return work / "dit" / setup.name / "last.pt"


def trained(work: Path, setup: Setup) -> dict[str, torch.Tensor]:
    """The averaged parameters of the transformer that `setup` has trained, without what helped in training."""
    return averaged(checkpoint(work, setup), "dit.")


def begin(work: Path, setup: Setup, device: torch.device, compile_blocks: bool) -> WanTransformer3DModel:
    """The transformer as `setup` finds it: new, or as the setup before has left it."""
    dit = WanTransformer3DModel(ARCH)
    initialize(dit)
    dit.to(device)
    if device.type == "cpu":
        use_matmul_attention(dit)
    if setup.name != SETUPS[0].name:
        before = SETUPS[[known.name for known in SETUPS].index(setup.name) - 1]
        dit.load_state_dict(trained(work, before))
    if compile_blocks:
        torch._dynamo.config.recompile_limit = 64  # a graph for each shape of the ingredients
        for block in dit.blocks:
            block.compile(dynamic=False)
    return dit


def judge_drawn(
    dit: WanTransformer3DModel, encoder: UMT5EncoderModel, vae: AutoencoderKLWan, setup: Setup, output_dir: Path
) -> Metrics:
    """What it gets right of prompts it was not trained on; of two objects under names that end in "_2"."""
    metrics: Metrics = {}
    for objects in sorted({i.objects for i in setup.ingredients}):
        size = setup.judged.batch
        pairs = held_out_prompts(3 * size // objects, objects=objects)
        parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        clips = [clip for part in parts for clip in sample_clips(dit, encoder, vae, part, setup)]
        torch.save(clips, output_dir / f"clips-{objects}.pt")
        verdicts = [judge(clip) if objects == 1 else judge_two(clip) for clip in clips]
        shares = accuracy(verdicts, [scene for scene, _ in pairs])
        metrics |= {name if objects == 1 else f"{name}_2": value for name, value in shares.items()}
    return metrics


def train(
    work: Path, setup: Setup, vae: AutoencoderKLWan, encoder: UMT5EncoderModel, compile_blocks: bool = True
) -> WanTransformer3DModel:
    """Train the transformer on the latents in `work`, from where the setup before has left it.

    The average of its parameters is returned.
    """
    output_dir, device = checkpoint(work, setup).parent, device_of(encoder)
    torch.manual_seed(0)
    aligned = AlignedDiT(begin(work, setup, device, compile_blocks)).to(device)
    dit = aligned.dit
    caches = {i: LatentCache(work / "latents", i.shape, i.objects) for i in setup.ingredients}

    def loss(info: StepInfo) -> tuple[torch.Tensor, Metrics]:
        if info.step % 50 == 0:
            for cache in caches.values():
                cache.refresh()
        ingredient = pick(setup, info, lambda i: len(caches[i]) > 0)
        latents, scenes = caches[ingredient].batch(info.rng, ingredient.shape.batch)
        latents = latents.to(device)
        captions = ["" if info.rng.random() < CAPTION_DROPOUT else caption(scene, info.rng) for scene in scenes]
        inputs = conditions(encoder, captions)
        sigmas = sample_sigmas(len(latents), SHIFT, device)
        losses = flow_matching_loss(lambda x, t: aligned(x, t, **inputs), latents, sigmas, setup.known_frames)
        shape = ingredient.shape
        names = aligned.alignment_loss(scenes, shape.frames, shape.size)
        suffix = f"{shape.frames}_{ingredient.objects}"
        metrics = {f"loss_{suffix}": losses.mean().item(), f"names_{suffix}": names.item()}
        return losses.mean() + alignment.WEIGHT * (1 - info.progress) * names, metrics

    def evaluate(step: int) -> Metrics:
        return judge_drawn(dit, encoder, vae, setup, output_dir)

    config = TrainerConfig(
        output_dir=output_dir,
        steps=setup.steps,
        lr=setup.lr,
        ema_decay=0.998,
        weight_decay=0.01,
        cooldown=setup.cooldown,
        checkpoint_every=100,
    )
    optimizer = MuonAdamW(aligned, dit.blocks, setup.lr, weight_decay=config.weight_decay)
    trainer = Trainer(aligned, config, loss, evaluate, setup.evaluate_every, optimizer=optimizer)
    trainer.run()
    trainer.ema.copy_to(aligned)
    return dit
