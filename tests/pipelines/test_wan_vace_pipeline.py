"""VACE against `diffusers.WanVACEPipeline` on the same repo, request and seed, and its transformer by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastvideo.configs.sample import SamplingParam
from fastvideo.entrypoints.media_inputs import read_media
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from tests import official_repos, tiny_repos
from tests.models import reference as components
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, film, load, load_reference, ours, picture, request, theirs

Pair = tuple[ComposedPipelineBase, Any]


@pytest.fixture(scope="module")
def pair(vace_repo: Path) -> Pair:
    """Ours and the reference."""
    return load(vace_repo), load_reference(vace_repo)


def masks(width: int, height: int, frames: int, seed: int = 0) -> list[Image.Image]:
    """Masks with grey borders."""
    noise = np.random.default_rng(seed).integers(0, 256, (frames, 4, 5), dtype=np.uint8)
    return [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in noise]


@pytest.mark.parametrize(
    ("media", "fields"),
    [
        ({}, {}),
        ({"video": film(48, 32, 9)}, {"conditioning_scale": 0.4}),
        ({"video": film(48, 32, 9), "mask": masks(48, 32, 9)}, {"conditioning_scale": [0.3, 1.5]}),
        ({"reference_images": [picture(31, 50), picture(90, 20, seed=4)]}, {"num_frames": 5, "guidance_scale": 1.0}),
        (
            {"video": film(48, 32, 5), "mask": masks(48, 32, 5), "reference_images": [picture(31, 50)]},
            {"num_frames": 5, "num_inference_steps": 5},
        ),
        (
            {"video": film(80, 16, 13), "reference_images": [picture(8, 9)]},
            {"height": 16, "width": 80, "num_frames": 13},
        ),
        ({"video": film(48, 32, 1)}, {"num_frames": 1}),
    ],
    ids=["text", "video", "mask", "references", "all", "odd", "one-frame"],
)
def test_pixels_equal_the_reference(pair: Pair, media: dict[str, Any], fields: dict[str, Any]) -> None:
    fields = request(**fields)
    mine = ours(pair[0], [CAT], ["blurry"], media, **fields)
    assert difference(mine, theirs(pair[1], CAT, "blurry", **media, **fields)) < LEVEL


def test_two_transformers(tmp_path: Path) -> None:
    repo = tiny_repos.make_vace_repo(tmp_path / "two", two=True)
    mine, media = (
        load(repo),
        {"video": film(48, 32, 5), "mask": masks(48, 32, 5), "reference_images": [picture(31, 50)]},
    )
    fields = request(num_frames=5, num_inference_steps=6, guidance_scale_2=1.5, conditioning_scale=[0.7, 1.2])
    made = ours(mine, [CAT], ["blurry"], media, **fields)
    assert difference(made, theirs(load_reference(repo), CAT, "blurry", **media, **fields)) < LEVEL
    assert not torch.equal(ours(mine, [CAT], ["blurry"], media, **{**fields, "guidance_scale_2": 3.0}), made)


def test_one_image_masks_all_frames(pair: Pair) -> None:
    fields, mask, video = request(), masks(48, 32, 1), film(48, 32, 9)
    expected = ours(pair[0], [CAT], [""], {"video": video, "mask": mask * 9}, **fields)
    assert torch.equal(ours(pair[0], [CAT], [""], {"video": video, "mask": mask[0]}, **fields), expected)
    assert not torch.equal(ours(pair[0], [CAT], [""], {"video": video}, **fields), expected)


def test_control_latents_equal_the_reference(pair: Pair) -> None:
    pipeline: Any = pair[0]
    media = {
        "video": film(48, 32, 5), "mask": masks(48, 32, 5), "reference_images": [picture(31, 50), picture(90, 20)],
    }  # fmt: skip
    sampling = SamplingParam(height=32, width=48, num_frames=5)
    batch = ForwardBatch(prompts=[""], negative_prompts=[""], sampling=sampling, media=read_media(sampling, media))
    with torch.no_grad():
        given = pair[1].preprocess_conditions(**media, height=32, width=48, num_frames=5, device="cpu")
        latents = pair[1].prepare_video_latents(*given, device="cpu")
        expected = torch.cat((latents, pair[1].prepare_masks(given[1], given[2])), dim=1)
        assert components.error(pipeline.control(batch, torch.device("cpu")), expected) < components.BOUND


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("scales", [[1.0, 1.0], [0.0, 2.5]])
def test_the_transformer(vace_repo: Path, batch: int, scales: list[float]) -> None:
    mine = components.ours(vace_repo, "transformer")
    exact = components.theirs(vace_repo, "transformer")
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(batch, 16, 3, 6, 8, generator=generator)
    control = torch.randn(batch, 96, 3, 6, 8, generator=generator)
    timestep = torch.rand(batch, generator=generator) * 1000
    text = torch.randn(batch, 20, 36, generator=generator)
    with torch.no_grad():
        expected = exact(
            latents, timestep, text, control_hidden_states=control, control_hidden_states_scale=torch.tensor(scales),
            return_dict=False,
        )[0]  # fmt: skip
        made = mine(latents, timestep, text=text, control=control, control_scales=scales)
    assert components.error(made, expected) < components.BOUND
    with pytest.raises(ValueError, match="with 1 scales: must be of the latents' size"):
        mine(latents, timestep, text=text, control=control, control_scales=[1.0])


def test_an_official_folder_gives_the_same(pair: Pair, vace_repo: Path, tmp_path: Path) -> None:
    official = load(official_repos.make_official_vace_repo(tmp_path / "official", vace_repo))
    media, fields = {"video": film(48, 32, 9), "reference_images": [picture(20, 20)]}, request()
    expected = ours(pair[0], [CAT], [""], media, **fields)
    assert torch.equal(ours(official, [CAT], [""], media, **fields), expected)


@pytest.mark.parametrize(
    ("media", "fields", "message"),
    [
        ({"mask": picture(8, 8)}, {}, "mask: without video; give video too"),
        ({"video": film(8, 8, 9), "mask": picture(8, 9)}, {}, "mask='8x9': must be of the video's size, '?8x8"),
        ({"video": film(8, 8, 4)}, {}, "video: has 4 frames, num_frames=9 asks for more"),
        (
            {},
            {"conditioning_scale": [1.0]},
            r"conditioning_scale=\[1.0\]: must be one number, or one for each",
        ),
        ({"image": picture(8, 8)}, {}, r"image: this model takes none.*\(it takes video, mask, reference_images\)"),
    ],
)
def test_a_bad_request_is_one_line(pair: Pair, media: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ours(pair[0], [CAT], [""], media, **request(**fields))
    assert "\n" not in str(caught.value)
