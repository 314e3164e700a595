"""Train the tokenizer and text encoder of the shapes model.

The encoder learns to name what a caption says (shape, colour, motion, background) from its token states, through
heads that are thrown away afterwards. The video transformer then reads states that already hold the meaning.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.configs.models.encoders.t5 import UMT5ArchConfig
from fastvideo.models.encoders.t5 import UMT5EncoderModel
from fastvideo.training.trainer import Metrics, StepInfo, Trainer, TrainerConfig, device_of
from recipes.shapes.captions import LABELS, attributes, build_tokenizer, caption
from recipes.shapes.world import Scene, held_out_combos, sample_scene

BATCH = 64
TWO_OBJECTS = 0.4


def build_text_encoder() -> UMT5EncoderModel:
    """An untrained text encoder with its tokenizer."""
    tokenizer = build_tokenizer()
    arch = UMT5ArchConfig(vocab_size=len(tokenizer), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
    encoder = UMT5EncoderModel(arch)
    encoder.tokenizer = tokenizer
    return encoder


class CaptionReader(nn.Module):
    """The encoder under one attention-pooled classifier for each attribute of each object."""

    def __init__(self, encoder: UMT5EncoderModel) -> None:
        super().__init__()
        width = encoder.arch.d_model
        self.encoder = encoder
        self.names = [f"{name}{index}" for index in (0, 1) for name in LABELS if (name, index) != ("background", 1)]
        self.queries = nn.Parameter(torch.randn(len(self.names), width) / width**0.5)
        self.heads = nn.ModuleList(nn.Linear(width, len(LABELS[name[:-1]])) for name in self.names)

    def forward(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """Logits [B, classes] under names like "colour0"."""
        embeddings = self.encoder(captions)
        scores = (embeddings.states @ self.queries.T).masked_fill(~embeddings.mask[..., None], -1e9)
        pooled = torch.einsum("bsq,bsd->qbd", scores.softmax(dim=1), embeddings.states)
        return {name: head(x) for name, head, x in zip(self.names, self.heads, pooled, strict=True)}


def labels(scenes: list[Scene], device: torch.device) -> dict[str, torch.Tensor]:
    """Class indices [B] under the names of `CaptionReader`; -100 where a scene has no second object."""
    result: dict[str, list[int]] = {}
    for scene in scenes:
        for index in (0, 1):
            known = attributes(scene, index) if index < len(scene.objects) else dict.fromkeys(LABELS, -100)
            for name, value in known.items():
                result.setdefault(f"{name}{index}", []).append(value)
    return {name: torch.tensor(values, device=device) for name, values in result.items()}


def scenes_and_captions(rng: np.random.Generator, held_out: bool = False) -> tuple[list[Scene], list[str]]:
    """A batch; `held_out` takes single objects of combinations that training never shows."""
    combos = held_out_combos()
    scenes = [
        sample_scene(rng, combos[rng.integers(len(combos))])
        if held_out
        else sample_scene(rng, objects=1 + int(rng.random() < TWO_OBJECTS))
        for _ in range(BATCH)
    ]
    return scenes, [caption(scene, rng) for scene in scenes]


def train(output_dir: Path, steps: int, device: str = "cpu") -> UMT5EncoderModel:
    """Train the encoder; the average of its parameters is returned."""
    torch.manual_seed(0)
    reader = CaptionReader(build_text_encoder()).to(device)

    def loss(info: StepInfo) -> tuple[torch.Tensor, Metrics]:
        scenes, captions = scenes_and_captions(info.rng)
        logits, truth = reader(captions), labels(scenes, device_of(reader))
        losses = [F.cross_entropy(logits[name].float(), truth[name], ignore_index=-100) for name in reader.names]
        return torch.stack(losses).mean(), {}

    def evaluate(step: int) -> Metrics:
        scenes, captions = scenes_and_captions(np.random.default_rng(11), held_out=True)
        logits, truth = reader(captions), labels(scenes, device_of(reader))
        return {
            name: (logits[name].argmax(-1) == truth[name]).float().mean().item()
            for name in reader.names
            if (truth[name] >= 0).all()
        }

    config = TrainerConfig(output_dir=output_dir, steps=steps, lr=1e-3, weight_decay=0.01)
    trainer = Trainer(reader, config, loss, evaluate, evaluate_every=500)
    trainer.run()
    trainer.ema.copy_to(reader)
    return reader.encoder
