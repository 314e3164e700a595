"""Clips of the shapes world as cached VAE latents: what the video transformer trains on.

The cache is a folder of shards. A shard's content depends on its clip shape and number alone, so shards can be made in
any order, by several processes, and again after a kill.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.training.trainer import autocast, device_of
from recipes.shapes.train_vae import ClipShape, as_video, clip_of
from recipes.shapes.world import Object, Scene, sample_scene

SHARD_CLIPS = 128
SPINNING = 3.0
"""How many times as often as another a clip is drawn in which something spins that is no circle. It is what takes a
transformer longest to draw: the outline is new in every frame."""
ENCODED_AT_ONCE = 4


def scene_from_dict(raw: dict[str, Any]) -> Scene:
    """The inverse of `dataclasses.asdict`."""
    return Scene(raw["background"], tuple(Object(**item) for item in raw["objects"]))


def shard_path(folder: Path, shape: ClipShape, objects: int, index: int) -> Path:
    return folder / f"{shape.frames}x{shape.size}-{objects}-{index:04d}.pt"


@torch.no_grad()
def build_shard(vae: AutoencoderKLWan, folder: Path, shape: ClipShape, objects: int, index: int) -> None:
    """Write shard `index` of clips of `shape` with one or two `objects`, unless it is there."""
    path = shard_path(folder, shape, objects, index)
    if path.exists():
        return
    rng = np.random.default_rng((shape.frames, shape.size, index, objects - 1))
    scenes = [sample_scene(rng, objects=objects) for _ in range(SHARD_CLIPS)]
    latents = []
    for start in range(0, SHARD_CLIPS, ENCODED_AT_ONCE):
        video = as_video([clip_of(scene, shape, rng) for scene in scenes[start : start + ENCODED_AT_ONCE]])
        with autocast(vae):
            latents.append(vae.encode(video.to(device_of(vae))).half().cpu())
    state = {"latents": torch.cat(latents), "scenes": [dataclasses.asdict(scene) for scene in scenes]}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


class LatentCache:
    """The shards of one clip shape and number of objects that are there; call `refresh` to see new ones."""

    def __init__(self, folder: Path, shape: ClipShape, objects: int) -> None:
        self.folder, self.shape, self.objects = folder, shape, objects
        self.latents: list[torch.Tensor] = []
        self.scenes: list[list[dict[str, Any]]] = []
        self.weights = np.zeros(0)
        self.refresh()

    def refresh(self) -> None:
        """Load shards, in order, that were added since."""
        while (path := shard_path(self.folder, self.shape, self.objects, len(self.latents))).exists():
            state = torch.load(path, weights_only=True)
            self.latents.append(state["latents"])
            self.scenes.append(state["scenes"])
            weights = [SPINNING if _spins(scene) else 1.0 for scene in state["scenes"]]
            self.weights = np.append(self.weights, weights)

    def __len__(self) -> int:
        return len(self.latents) * SHARD_CLIPS

    def batch(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, list[Scene]]:
        """`size` random clips: latents [size, z, t, h, w] fp32, and their scenes."""
        shares = self.weights / self.weights.sum()
        picks = [divmod(int(i), SHARD_CLIPS) for i in rng.choice(len(self), size, p=shares)]
        latents = torch.stack([self.latents[shard][index].float() for shard, index in picks])
        return latents, [scene_from_dict(self.scenes[shard][index]) for shard, index in picks]


def _spins(scene: dict[str, Any]) -> bool:
    return any(item["motion"] == "spinning" and item["shape"] != "circle" for item in scene["objects"])
