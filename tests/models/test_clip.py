"""The CLIP vision encoder and its image processor against `transformers`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastvideo.models.encoders.image_processor import ImageProcessor
from tests import tiny_repos
from tests.models.reference import BF16_NOISE, BOUND, error, mean_square, ours, theirs, write_repo


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def pixels(seed: int = 0, batch: int = 2, size: int = 28) -> torch.Tensor:
    """Processed pixels."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def reference(model: Any, given: torch.Tensor) -> torch.Tensor:
    """The states that the reference's pipeline takes."""
    states: torch.Tensor = model(pixel_values=given, output_hidden_states=True).hidden_states[-2]
    return states


@pytest.mark.parametrize("batch", [1, 3])
def test_states(i2v_repo: Path, batch: int) -> None:
    mine, exact = ours(i2v_repo, "image_encoder"), theirs(i2v_repo, "image_encoder")
    given = pixels(batch=batch)
    assert error(mine.hidden_states(given), reference(exact, given)) < BOUND


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_act": "quick_gelu", "num_hidden_layers": 2},
        {"layer_norm_eps": 1e-3, "num_attention_heads": 2, "image_size": 21, "patch_size": 7},
    ],
)
def test_other_architectures(tmp_path: Path, fields: dict[str, Any]) -> None:
    repo = write_repo(tmp_path, image_encoder=tiny_repos.make_image_encoder(seed=6, **fields))
    given = pixels(size=fields.get("image_size", 28))
    mine, exact = ours(repo, "image_encoder"), theirs(repo, "image_encoder")
    assert error(mine.hidden_states(given), reference(exact, given)) < BOUND


def test_bf16_is_as_close_as_the_reference(i2v_repo: Path) -> None:
    exact, rounded, mine = (
        theirs(i2v_repo, "image_encoder"), theirs(i2v_repo, "image_encoder", torch.bfloat16),
        ours(i2v_repo, "image_encoder", torch.bfloat16),
    )  # fmt: skip
    pairs: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[], []]
    for seed in range(24):
        given = pixels(seed)
        expected = reference(exact, given)
        pairs[0].append((mine.hidden_states(given.bfloat16()), expected))
        pairs[1].append((reference(rounded, given.bfloat16()), expected))
    assert 0 < mean_square(pairs[0]) <= BF16_NOISE * mean_square(pairs[1])


@pytest.mark.parametrize("size", [(28, 28), (97, 41), (41, 97), (30, 300), (20, 25), (224, 225)])
def test_images_are_processed_as_by_the_reference(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    processor = tiny_repos.make_image_processor()
    expected = processor(images=Image.fromarray(image), return_tensors="pt").pixel_values[0]
    made = ImageProcessor.from_dict(processor.to_dict())(torch.from_numpy(image))
    assert made.shape == expected.shape
    assert (made - expected).abs().max() < 1e-5
    floats = ImageProcessor.from_dict(processor.to_dict())(torch.from_numpy(image).float() / 255)
    assert torch.equal(floats, made)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"do_resize": False}, "do_resize=False: must be True"),
        ({"resample": 2}, "resample=2: must be 3"),
        ({"crops": 3}, r"'crops'.*image processor|crops"),
        ({"size": {"height": 10, "width": 10}}, "its shortest_edge must be"),
        ({"size": {"shortest_edge": 100}}, r"size=.*its shortest_edge must be \(224, 224\) or more"),
    ],
)
def test_a_processor_that_is_not_this_one(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageProcessor.from_dict(raw)


def test_names_of_older_repos(i2v_repo: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "image_encoder"
    repo = write_repo(tmp_path, image_encoder=theirs(i2v_repo, "image_encoder"))
    state = load_file(folder / "model.safetensors")
    older = {f"vision_model.{name}": tensor for name, tensor in state.items()}
    older["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(older, folder / "model.safetensors")
    made, expected = ours(repo, "image_encoder"), ours(i2v_repo, "image_encoder")
    assert torch.equal(made.hidden_states(pixels()), expected.hidden_states(pixels()))
