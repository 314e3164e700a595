"""Train the tokenizer and text encoder of the shapes model.

The encoder learns to name what a caption says (shape, colour, motion, background) from its token states, through
heads that are thrown away afterwards. The video transformer then reads states that already hold the meaning, and that
say which words belong together.
"""

from collections.abc import Sequence
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
OF_COLOUR = ("shape", "motion")
"""What is asked of the object of a colour, which no two of a scene share: where a transformer sees something red, it
has to find the words that go with "red", and without this it draws the shape and the motion of the other object."""


def build_text_encoder() -> UMT5EncoderModel:
    """An untrained text encoder with its tokenizer."""
    tokenizer = build_tokenizer()
    arch = UMT5ArchConfig(vocab_size=len(tokenizer), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
    encoder = UMT5EncoderModel(arch)
    encoder.tokenizer = tokenizer
    return encoder


class CaptionReader(nn.Module):
    """The encoder under attention-pooled classifiers: for each attribute of the first and of the second object, and for
    each of `OF_COLOUR` of the object of a given colour."""

    def __init__(self, encoder: UMT5EncoderModel) -> None:
        super().__init__()
        width = encoder.arch.d_model
        self.encoder = encoder
        self.names = [f"{name}{index}" for index in (0, 1) for name in LABELS if (name, index) != ("background", 1)]
        self.queries = nn.Parameter(torch.randn(len(self.names), width) / width**0.5)
        self.heads = nn.ModuleList(nn.Linear(width, len(LABELS[name[:-1]])) for name in self.names)
        self.colour_queries = nn.Parameter(torch.randn(len(OF_COLOUR), len(LABELS["colour"]), width) / width**0.5)
        self.colour_heads = nn.ModuleList(nn.Linear(width, len(LABELS[name])) for name in OF_COLOUR)

    def forward(self, captions: list[str], colours: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [B, classes] under names like "colour0"; "shape of colour" is of the object of `colours` [B]."""
        embeddings = self.encoder(captions)
        queries = torch.cat(
            (
                self.queries[:, None].expand(-1, len(captions), -1),
                self.colour_queries[:, colours],
            )
        )
        scores = torch.einsum("bsd,qbd->bsq", embeddings.states, queries)
        weights = scores.masked_fill(~embeddings.mask[..., None], -1e9).softmax(dim=1)
        pooled = torch.einsum("bsq,bsd->qbd", weights, embeddings.states)
        names = [*self.names, *(f"{name} of colour" for name in OF_COLOUR)]
        heads = [*self.heads, *self.colour_heads]
        return {name: head(x) for name, head, x in zip(names, heads, pooled, strict=True)}


def labels(scenes: list[Scene], chosen: Sequence[int], device: torch.device) -> dict[str, torch.Tensor]:
    """Class indices [B] under the names of `CaptionReader`; -100 where a scene has no second object.

    "colour" is that of the object `chosen` of each scene, whose shape and motion are asked by it.
    """
    result: dict[str, list[int]] = {}
    for scene, index in zip(scenes, chosen, strict=True):
        for number in (0, 1):
            known = attributes(scene, number) if number < len(scene.objects) else dict.fromkeys(LABELS, -100)
            for name, value in known.items():
                result.setdefault(f"{name}{number}", []).append(value)
        for name, value in attributes(scene, index).items():
            result.setdefault(f"{name} of colour", []).append(value)
    return {name: torch.tensor(values, device=device) for name, values in result.items()}


def scenes_and_captions(rng: np.random.Generator, unseen_objects: int = 0) -> tuple[list[Scene], list[str]]:
    """A batch; with `unseen_objects` of so many objects, the first of a combination that training never shows."""
    combos = held_out_combos()
    scenes = [
        sample_scene(rng, combos[rng.integers(len(combos))], unseen_objects)
        if unseen_objects
        else sample_scene(rng, objects=1 + int(rng.random() < TWO_OBJECTS))
        for _ in range(BATCH)
    ]
    return scenes, [caption(scene, rng) for scene in scenes]


def train(output_dir: Path, steps: int, device: str = "cpu") -> UMT5EncoderModel:
    """Train the encoder; the average of its parameters is returned."""
    torch.manual_seed(0)
    reader = CaptionReader(build_text_encoder()).to(device)

    def read(
        rng: np.random.Generator, unseen_objects: int = 0
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        scenes, captions = scenes_and_captions(rng, unseen_objects)
        chosen = [int(rng.integers(len(scene.objects))) for scene in scenes]
        truth = labels(scenes, chosen, device_of(reader))
        return reader(captions, truth["colour of colour"]), truth

    def loss(info: StepInfo) -> tuple[torch.Tensor, Metrics]:
        logits, truth = read(info.rng)
        losses = [F.cross_entropy(logits[name].float(), truth[name], ignore_index=-100) for name in logits]
        return torch.stack(losses).mean(), {}

    def evaluate(step: int) -> Metrics:
        metrics: Metrics = {}
        for objects in (1, 2):
            logits, truth = read(np.random.default_rng(11), objects)
            metrics |= {
                f"{name} of {objects}": (logits[name].argmax(-1) == truth[name]).float().mean().item()
                for name in logits
                if (truth[name] >= 0).all()
            }
        return metrics

    config = TrainerConfig(output_dir=output_dir, steps=steps, lr=1e-3, weight_decay=0.01)
    trainer = Trainer(reader, config, loss, evaluate, evaluate_every=500)
    trainer.run()
    trainer.ema.copy_to(reader)
    return reader.encoder
