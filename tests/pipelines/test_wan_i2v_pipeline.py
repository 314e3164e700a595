"""Wan 2.1 image to video against `diffusers.WanImageToVideoPipeline` on the same repo, request and seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, load, load_reference, ours, picture, request, theirs

Pair = tuple[ComposedPipelineBase, Any]


@pytest.fixture(scope="module")
def first(i2v_repo: Path) -> Pair:
    """From a first frame."""
    return load(i2v_repo), load_reference(i2v_repo)


@pytest.fixture(scope="module")
def both(flf2v_repo: Path) -> Pair:
    """From a first and a last frame."""
    return load(flf2v_repo), load_reference(flf2v_repo)


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ((48, 32), {}),
        ((97, 41), {"guidance_scale": 1.0}),
        ((37, 53), {"height": 48, "width": 32, "num_frames": 5, "num_inference_steps": 6}),
        ((300, 20), {"height": 16, "width": 80, "num_frames": 13}),
        ((48, 32), {"num_frames": 1, "num_inference_steps": 1}),
    ],
    ids=lambda value: "-".join(map(str, value.values() if isinstance(value, dict) else value)),
)
def test_from_a_first_frame(first: Pair, size: tuple[int, int], fields: dict[str, Any]) -> None:
    image, fields = picture(*size), request(**fields)
    mine = ours(first[0], [CAT], ["blurry"], {"image": image}, **fields)
    assert difference(mine, theirs(first[1], [CAT], ["blurry"], image=image, **fields)) < LEVEL


@pytest.mark.parametrize(
    ("size", "fields"),
    [((48, 32), {}), ((61, 99), {"height": 48, "width": 16, "num_frames": 5, "guidance_scale": 0.0})],
    ids=["fits", "odd"],
)
def test_from_a_first_and_a_last_frame(both: Pair, size: tuple[int, int], fields: dict[str, Any]) -> None:
    images, fields = (picture(*size), picture(*size, seed=7)), request(**fields)
    mine = ours(both[0], [CAT], ["blurry"], {"image": images[0], "last_image": images[1]}, **fields)
    reference = theirs(both[1], [CAT], ["blurry"], image=images[0], last_image=images[1], **fields)
    assert difference(mine, reference) < LEVEL


def test_several_videos_of_a_prompt(first: Pair) -> None:
    image, fields = picture(40, 40), request(num_frames=5, num_videos_per_prompt=1)
    prompts, negatives = [CAT, "kite"], ["", "blurry low"]
    mine = ours(first[0], prompts, negatives, {"image": image}, **fields)
    assert difference(mine, theirs(first[1], prompts, negatives, image=image, **fields)) < LEVEL


def test_pixels_as_floats(first: Pair) -> None:
    from PIL import Image

    values = np.asarray(picture(48, 32))
    exact = ours(first[0], [CAT], [""], {"image": Image.fromarray(values)}, **request())
    floats = torch.from_numpy(values.copy()).movedim(-1, 0).float() / 255
    assert torch.equal(ours(first[0], [CAT], [""], {"image": floats}, **request()), exact)
    # of another size, each colour is scaled by the same filter, without rounding in between
    small = np.asarray(picture(35, 29)).astype(np.float32) / 255
    scaled = ours(first[0], [CAT], [""], {"image": small}, **request())
    rounded = ours(first[0], [CAT], [""], {"image": (small * 255).round().astype(np.uint8)}, **request())
    assert 0 < float((scaled - rounded).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("media", "fields", "message"),
    [
        ({}, {}, "image: this model needs one; give image=..., image_path or its flag"),
        ({"image": picture(8, 8), "last_image": picture(8, 8)}, {}, "last_image: this model takes none"),
        ({"image": picture(8, 8), "video": [picture(8, 8)] * 9}, {}, r"video: this model takes none.*takes image\)"),
        ({"image": picture(8, 8)}, {"guidance_scale_2": 3.0}, "guidance_scale_2=3.0: this model would ignore it"),
        ({"image": picture(8, 8)}, {"height": 40}, "height=40: must be a multiple of 16; try"),
    ],
)
def test_a_bad_request_is_one_line(first: Pair, media: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ours(first[0], [CAT], [""], media, **request(**fields))
    assert "\n" not in str(caught.value)


def test_a_model_of_two_frames_needs_both(both: Pair) -> None:
    with pytest.raises(ValueError, match="last_image: this model needs one"):
        ours(both[0], [CAT], [""], {"image": picture(8, 8)}, **request())
    with pytest.raises(ValueError, match="last_image: without image; give image too"):
        ours(both[0], [CAT], [""], {"last_image": picture(8, 8)}, **request())
    with pytest.raises(ValueError, match="num_frames=1: must be more than 1 with a last frame; try 5"):
        ours(both[0], [CAT], [""], {"image": picture(8, 8), "last_image": picture(8, 8)}, **request(num_frames=1))
