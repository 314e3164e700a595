"""Wan 2.2 against `diffusers` on the same repo, request and seed: two transformers, and text and image in one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from tests import official_repos
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, load, load_reference, ours, picture, request, theirs

Pair = tuple[ComposedPipelineBase, Any]


@pytest.fixture(scope="module")
def text(wan22_repo: Path) -> Pair:
    """Text to video."""
    return load(wan22_repo), load_reference(wan22_repo)


@pytest.fixture(scope="module")
def image(wan22_i2v_repo: Path) -> Pair:
    """Image to video."""
    return load(wan22_i2v_repo), load_reference(wan22_i2v_repo)


@pytest.fixture(scope="module")
def both(ti2v_repo: Path) -> dict[str, Any]:
    """One model for both, and the reference for each."""
    return {
        "ours": load(ti2v_repo), "text": load_reference(ti2v_repo),
        "image": load_reference(ti2v_repo, "WanImageToVideoPipeline"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance_scale_2": 1.7, "num_inference_steps": 6},
        {"num_inference_steps": 5},
        {"guidance_scale": 1.0, "num_frames": 5, "num_inference_steps": 8},
        {"guidance_scale_2": 0.5, "height": 48, "width": 16, "num_frames": 1, "num_inference_steps": 8},
    ],
    ids=["two-scales", "one-scale", "unguided", "odd"],
)
def test_text_to_video(text: Pair, fields: dict[str, Any]) -> None:
    fields = request(**fields)
    mine = ours(text[0], [CAT], ["blurry"], {}, **fields)
    assert difference(mine, theirs(text[1], [CAT], ["blurry"], **fields)) < LEVEL


def test_both_transformers_run_at_their_timesteps(text: Pair) -> None:
    pipeline = text[0]
    denoising = next(stage for stage in pipeline.stages if stage.name == "denoising")
    high, low = pipeline.components["transformer"], pipeline.components["transformer_2"]
    picked = [denoising.pick(torch.tensor(t)) for t in (1000, 875, 874.9, 0)]  # type: ignore[attr-defined]
    assert [model is high for model in picked] == [True, True, False, False]
    assert picked[-1] is low


@pytest.mark.parametrize(
    ("last", "fields"),
    [
        (False, {"guidance_scale_2": 2.0, "num_inference_steps": 6}),
        (True, {"num_inference_steps": 6}),
        (True, {"height": 16, "width": 80, "num_frames": 5, "guidance_scale": 1.0}),
    ],
    ids=["first", "first-and-last", "odd"],
)
def test_image_to_video(image: Pair, last: bool, fields: dict[str, Any]) -> None:
    images = {"image": picture(61, 45)} | ({"last_image": picture(30, 50, seed=5)} if last else {})
    fields = request(**fields)
    mine = ours(image[0], [CAT], ["blurry"], images, **fields)
    assert difference(mine, theirs(image[1], [CAT], ["blurry"], **images, **fields)) < LEVEL


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize(
    "fields",
    [
        {"height": 64, "width": 96},
        {"height": 32, "width": 160, "num_frames": 5, "num_inference_steps": 6},
        {"height": 96, "width": 32, "num_frames": 13, "guidance_scale": 1.0},
        {"height": 64, "width": 64, "num_frames": 1, "num_inference_steps": 2},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_text_and_image_to_video(both: dict[str, Any], kind: str, fields: dict[str, Any]) -> None:
    images = {"image": picture(61, 45)} if kind == "image" else {}
    fields = request(**fields)
    mine = ours(both["ours"], [CAT], ["blurry"], images, **fields)
    assert difference(mine, theirs(both[kind], [CAT], ["blurry"], **images, **fields)) < LEVEL


def test_several_prompts_with_an_image(both: dict[str, Any]) -> None:
    fields = request(height=32, width=32, num_frames=5)
    prompts, negatives, images = [CAT, "kite"], ["", "low"], {"image": picture(32, 32)}
    mine = ours(both["ours"], prompts, negatives, images, **fields)
    assert difference(mine, theirs(both["image"], prompts, negatives, **images, **fields)) < LEVEL


@pytest.mark.parametrize(
    ("model", "media", "fields", "message"),
    [
        ("text", {"image": picture(8, 8)}, {}, r"image: this model takes none.*\(it takes text alone\)"),
        ("image", {}, {}, "image: this model needs one"),
        ("both", {}, {"guidance_scale_2": 3.0}, "guidance_scale_2=3.0: this model would ignore it"),
        ("both", {"last_image": picture(8, 8)}, {}, r"last_image: this model takes none.*\(it takes image\)"),
        ("both", {}, {"height": 48}, "height=48: must be a multiple of 32; try 64"),
    ],
)
def test_a_bad_request_is_one_line(
    text: Pair,
    image: Pair,
    both: dict[str, Any],
    model: str,
    media: dict[str, Any],
    fields: dict[str, Any],
    message: str,
) -> None:
    pipeline = {"text": text[0], "image": image[0], "both": both["ours"]}[model]
    with pytest.raises(ValueError, match=message) as caught:
        ours(pipeline, [CAT], [""], media, **request(**{"height": 32, "width": 64, **fields}))
    assert "\n" not in str(caught.value)


def test_a_repo_without_a_boundary_is_refused(wan22_repo: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(wan22_repo, repo)
    index = json.loads((repo / "model_index.json").read_text())
    (repo / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": None}))
    with pytest.raises(ValueError, match=r"boundary_ratio=None: model_index.json of a model with two transformers"):
        load(repo)


@pytest.mark.parametrize("kind", ["t2v", "i2v", "ti2v"])
def test_an_official_folder_gives_the_same(
    kind: str, wan22_repo: Path, wan22_i2v_repo: Path, ti2v_repo: Path, tmp_path: Path
) -> None:
    source_of = {"t2v": wan22_repo, "i2v": wan22_i2v_repo, "ti2v": ti2v_repo}
    official = load(official_repos.make_official_22_repo(tmp_path / "official", source_of[kind], kind))
    expected = load(source_of[kind])
    media = {} if kind == "t2v" else {"image": picture(40, 30)}
    fields = request(height=32, width=64, num_inference_steps=6)
    assert torch.equal(ours(official, [CAT], [""], media, **fields), ours(expected, [CAT], [""], media, **fields))
