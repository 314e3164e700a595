"""`VideoGenerator.check_request`: what would be refused, without a weight and while the model is busy."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo import SamplingParam, VideoGenerator
from fastvideo.configs.registry import entry_for
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline
from fastvideo.pipelines.pipeline_batch_info import Progress
from fastvideo.utils import RuleError, resolve

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("num_frames", {"num_frames": 50}),
    ("height", {"height": 33}),
    ("width", {"width": 24}),
    ("seed", {"seed": -1}),
    ("guidance_rescale", {"guidance_rescale": 0.5, "guidance_scale": 1.0}),
    ("fps", {"fps": 0}),
    ("prompt", {"prompt": 7}),
]


@pytest.fixture(scope="module")
def generator(wan_repo: Path) -> Iterator[VideoGenerator]:
    """A generator of the tiny model."""
    with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu") as made:
        yield made


@pytest.mark.parametrize(("name", "fields"), REFUSED)
def test_it_refuses_what_generating_refuses(generator: VideoGenerator, name: str, fields: dict[str, Any]) -> None:
    request = {"prompt": "kite", "height": 32, "width": 32, "save_video": False, **fields}
    with pytest.raises(RuleError) as generating:
        generator.generate_video(**request)
    with pytest.raises(RuleError) as checking:
        generator.check_request(**request)
    assert str(checking.value) == str(generating.value)
    assert checking.value.name == generating.value.name == name


def test_it_gives_what_the_request_comes_to(generator: VideoGenerator) -> None:
    given = SamplingParam(num_frames=9, seed=4)
    made = generator.check_request("kite", given, seed=5, height=32)
    assert (made.num_frames, made.seed, made.height) == (9, 5, 32)
    assert (given.seed, given.height) == (4, 480)


def test_while_the_model_is_busy(generator: VideoGenerator) -> None:
    refused = []

    def check(progress: Progress) -> None:
        try:
            generator.check_request("kite", num_frames=50)
        except RuleError as error:
            refused.append(error.name)

    small: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "save_video": False}
    generator.generate_video("kite", progress=check, **small)
    assert refused
    assert set(refused) == {"num_frames"}


def test_a_pipeline_without_weights_holds_none(wan_repo: Path) -> None:
    repo, args = resolve_repo(str(wan_repo)), FastVideoArgs(model=str(wan_repo), device="cpu")
    config = resolve(entry_for(wan_repo).pipeline_config)()
    pipeline = WanPipeline.without_weights(repo, args, config)
    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert models
    assert all(tensor.is_meta for model in models for tensor in model.parameters())


def test_a_rule_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(RuleError("seed", "seed=-1: must be a whole number")))
    assert (error.name, str(error)) == ("seed", "seed=-1: must be a whole number")


def test_after_shutdown(wan_repo: Path) -> None:
    with VideoGenerator.from_pretrained(wan_repo, device="cpu") as generator:
        pass
    with pytest.raises(RuntimeError, match="shut down"):
        generator.check_request("kite")
