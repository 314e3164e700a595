"""The whole recipe, from nothing to `fastvideo/assets/shapes-t2v`: `python -m recipes.shapes.run all`.

Each stage leaves checkpoints in the work folder and picks up from them, so that a run can be killed at any moment.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch

from fastvideo.logger import init_logger
from fastvideo.models.loader.component_loader import load_component
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.training.plot import plot_logs
from fastvideo.training.trainer import autocast, averaged
from recipes.shapes import train_dit, train_text, train_vae
from recipes.shapes.export import export
from recipes.shapes.latents import build_shard
from recipes.shapes.train_vae import ClipShape, batch_of_clips

logger = init_logger("fastvideo.recipes.shapes")


STAGES = ("vae", "text", "latents", "dit", "decoder", "export", "plot")
"""All of them, in order."""
OUTPUTS = {
    "small": Path("dist/shapes-t2v-small"),
    "full": Path("fastvideo/assets/shapes-t2v"),
    "image": Path("dist/shapes-ti2v"),
}
"""Where the repos go. The companion is not in the package."""


def encoder_checkpoint(work: Path) -> Path:
    return work / "vae" / "encoder.pt"


def freeze_encoder(work: Path) -> None:
    """Keep the VAE as it is after its last stage, with the statistics of its latents; the encoder stays so."""
    state = averaged(work / "vae" / train_vae.STAGES[-1].name / "last.pt")
    vae = AutoencoderKLWan(train_vae.ARCH)
    vae.load_state_dict(state)
    rng = np.random.default_rng(5)
    with torch.no_grad(), autocast(vae):
        latents = torch.cat([vae.encode(batch_of_clips(rng, ClipShape(2, 25, 128))).float() for _ in range(12)])
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    logger.info("latents: mean %s std %s", mean.tolist(), std.tolist())
    torch.save({"vae": state, "mean": mean.tolist(), "std": std.tolist()}, encoder_checkpoint(work))


def load_vae(work: Path, decoder: bool = False) -> AutoencoderKLWan:
    """The VAE with scaled latents; `decoder` takes the decoder of the last stage."""
    state = torch.load(encoder_checkpoint(work), map_location="cpu", weights_only=True)
    arch = dataclasses.replace(train_vae.ARCH, latents_mean=tuple(state["mean"]), latents_std=tuple(state["std"]))
    vae = AutoencoderKLWan(arch)
    vae.load_state_dict(state["vae"])
    if decoder and (path := work / "vae" / "decoder" / "last.pt").exists():
        vae.load_state_dict(averaged(path))
    return vae.eval()


def load_text_encoder(work: Path) -> train_text.UMT5EncoderModel:
    """The text encoder, without the heads it was trained under."""
    encoder = train_text.build_text_encoder()
    encoder.load_state_dict(averaged(work / "text" / "last.pt", "encoder."))
    return encoder.eval()


def adopt(work: Path, model: str = "shapes-t2v") -> None:
    """Begin with the parts of a finished model, as if they had been trained in `work`. What is there stays."""
    sources, cpu = resolve_repo(model).components, torch.device("cpu")
    vae, encoder, dit = (
        load_component(sources[name], dtype=torch.float32, device=cpu)
        for name in ("vae", "text_encoder", "transformer")
    )
    assert isinstance(vae, AutoencoderKLWan)
    mean, std = list(vae.arch.latents_mean), list(vae.arch.latents_std)
    states = {
        encoder_checkpoint(work): {"vae": vae.state_dict(), "mean": mean, "std": std},
        work / "text" / "last.pt": {"ema": {f"encoder.{name}": value for name, value in encoder.state_dict().items()}},
        train_dit.checkpoint(work, train_dit.FULL): {
            "ema": {f"dit.{name}": value for name, value in dit.state_dict().items()}
        },
    }
    for path, state in states.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, path)


def build_latents(
    vae: AutoencoderKLWan, folder: Path, setup: train_dit.Setup, scale: float = 1.0, part: int = 0, parts: int = 1
) -> None:
    """Encode this part's shards of every kind of clip in `setup`, a bit of each kind at a time.

    `scale` is the share of the shards to make, at least one of a kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train_vae.channels_last(vae)
    jobs = [
        (index / ingredient.shards, ingredient.shape, ingredient.objects, index)
        for ingredient in setup.ingredients
        for index in range(max(1, round(ingredient.shards * scale)))
    ]
    for number, (_, shape, objects, index) in enumerate(sorted(jobs, key=lambda job: job[0])):
        if number % parts == part:
            build_shard(vae, folder, shape, objects, index)


def plot(work: Path) -> None:
    """Draw the curves of the VAE's stages and of the transformer as PNGs in the work folder."""
    vae = {name: work / "vae" / name / "log.jsonl" for name in ("images", "clips", "crops", "decoder")}
    plot_logs(vae, work / "vae.png", ("psnr", "heldout_psnr", "heldout_psnr_2", "kl"))
    logs = {setup.name: work / "dit" / setup.name / "log.jsonl" for setup in train_dit.SETUPS}
    plot_logs(logs, work / "dit.png", ("loss_25_1", "loss_25_2", "colour", "shape", "motion", "whole_2"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", nargs="+", choices=(*STAGES, "adopt", "all"))
    parser.add_argument("--work", type=Path, default=Path(".work/shapes"))
    parser.add_argument("--output", type=Path, help="export: the folder to write")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the full number of steps, and of the latents"
    )
    parser.add_argument("--part", default="0/1", help="latents: this process's share, as number/count")
    parser.add_argument(
        "--setup",
        nargs="+",
        choices=[setup.name for setup in train_dit.SETUPS],
        default=["small", "pairs", "full"],
        help="latents, dit: which parts; export: the last of them",
    )
    parser.add_argument("--no-compile", action="store_true", help="dit: run eagerly")
    options = parser.parse_args()
    setups = [setup for setup in train_dit.SETUPS if setup.name in options.setup]
    work = options.work
    if "all" in options.stage and len(options.stage) > 1:
        parser.error("stage=all: is every stage; give it alone")
    for stage in STAGES if options.stage == ["all"] else options.stage:
        if stage == "adopt":
            adopt(work)
        elif stage == "vae":
            train_vae.train(work / "vae", options.scale, options.device)
            freeze_encoder(work)
        elif stage == "decoder":
            train_vae.train_decoder(work / "vae", load_vae(work).to(options.device), options.scale)
        elif stage == "text":
            train_text.train(work / "text", int(2500 * options.scale), options.device)
        elif stage == "latents":
            part, parts = (int(number) for number in options.part.split("/"))
            for setup in setups:
                build_latents(load_vae(work).to(options.device), work / "latents", setup, options.scale, part, parts)
        elif stage == "dit":
            vae = load_vae(work, decoder=True).to(options.device)
            encoder = load_text_encoder(work).to(options.device)
            for setup in setups:
                scaled = dataclasses.replace(setup, steps=int(setup.steps * options.scale))
                train_dit.train(work, scaled, vae, encoder, not options.no_compile)
        elif stage == "plot":
            plot(work)
        else:
            output = options.output or OUTPUTS[setups[-1].name]
            export(work, setups[-1], output, load_vae(work, decoder=True), load_text_encoder(work))


if __name__ == "__main__":
    main()
