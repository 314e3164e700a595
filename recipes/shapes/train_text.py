"""Train the tokenizer and text encoder of the shapes model.

The encoder learns to tell what a caption says from its token states, through heads that are thrown away afterwards: the
background, and for each colour the shape and the motion of the object that has it. The video transformer then reads
states that already hold the meaning, and that say which words belong together.
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
OF_COLOUR = ("shape", "motion")
"""What is asked of each colour, which no two objects of a scene share."""
ABSENT = 0
"""The class of a colour that no object has; others are 1 more than in `LABELS`."""


def build_text_encoder() -> UMT5EncoderModel:
    """An untrained text encoder with its tokenizer."""
    tokenizer = build_tokenizer()
    arch = UMT5ArchConfig(vocab_size=len(tokenizer), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
    encoder = UMT5EncoderModel(arch)
    encoder.tokenizer = tokenizer
    return encoder


class CaptionReader(nn.Module):
    """The encoder under attention-pooled classifiers: for the background, and for each of `OF_COLOUR` of each colour.

    Nothing is asked by an object's place in the text. Heads for "the shape of the first object" and "of the second"
    make every state tell of both objects, and a transformer that reads such states draws two objects with one motion.
    Asked by colour, the words of an object tell of that object, all objects in the same way.
    """

    def __init__(self, encoder: UMT5EncoderModel) -> None:
        super().__init__()
        width = encoder.arch.d_model
        self.encoder = encoder
        self.queries = nn.Parameter(torch.randn(1 + len(LABELS["colour"]), width) / width**0.5)
        self.background = nn.Linear(width, len(LABELS["background"]))
        self.of_colour = nn.ModuleDict({name: nn.Linear(width, 1 + len(LABELS[name])) for name in OF_COLOUR})

    def forward(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """Logits: "background" [B, classes], and under the names in `OF_COLOUR` [B, colours, classes]."""
        embeddings = self.encoder(captions)
        scores = torch.einsum("bsd,qd->bqs", embeddings.states, self.queries)
        weights = scores.masked_fill(~embeddings.mask[:, None], -1e9).softmax(dim=-1)
        pooled = weights @ embeddings.states
        logits: dict[str, torch.Tensor] = {name: head(pooled[:, 1:]) for name, head in self.of_colour.items()}
        return logits | {"background": self.background(pooled[:, 0])}


def labels(scenes: list[Scene], device: torch.device) -> dict[str, torch.Tensor]:
    """Classes under the names of `CaptionReader`: [B] for "background", [B, colours] for the others."""
    truth = {name: torch.full((len(scenes), len(LABELS["colour"])), ABSENT) for name in OF_COLOUR}
    for row, scene in enumerate(scenes):
        for index in range(len(scene.objects)):
            words = attributes(scene, index)
            for name in OF_COLOUR:
                truth[name][row, words["colour"]] = 1 + words[name]
    truth["background"] = torch.tensor([attributes(scene)["background"] for scene in scenes])
    return {name: values.to(device) for name, values in truth.items()}


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

    def loss(info: StepInfo) -> tuple[torch.Tensor, Metrics]:
        scenes, captions = scenes_and_captions(info.rng)
        logits, truth = reader(captions), labels(scenes, device_of(reader))
        # of eight colours one or two are there: summed over them, as much as the background
        losses = {name: F.cross_entropy(x.float().movedim(-1, 1), truth[name]) for name, x in logits.items()}
        return losses["background"] + len(LABELS["colour"]) * sum(losses[name] for name in OF_COLOUR), {}

    def evaluate(step: int) -> Metrics:
        metrics: Metrics = {}
        for objects in (1, 2):
            scenes, captions = scenes_and_captions(np.random.default_rng(11), objects)
            logits, truth = reader(captions), labels(scenes, device_of(reader))
            for name, values in truth.items():
                right = logits[name].argmax(-1) == values
                # of an object, not of the colours that are not there
                there = right if name == "background" else right[values != ABSENT]
                metrics[f"{name} of {objects}"] = there.float().mean().item()
        return metrics

    config = TrainerConfig(output_dir=output_dir, steps=steps, lr=1e-3, weight_decay=0.01)
    trainer = Trainer(reader, config, loss, evaluate, evaluate_every=500)
    trainer.run()
    trainer.ema.copy_to(reader)
    return reader.encoder
