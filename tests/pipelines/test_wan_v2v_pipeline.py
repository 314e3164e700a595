"""Video to video against `diffusers`: a text-to-video model that is given a video, and Lucy Edit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from tests import tiny_repos
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, film, load, load_reference, ours, picture, request, theirs

Pair = tuple[ComposedPipelineBase, Any]


@pytest.fixture(scope="module")
def pairs(wan_repo: Path, euler_repo: Path) -> dict[str, Pair]:
    """A text-to-video repo, by its scheduler, and the reference that takes a video."""
    return {name: (load(repo), load_reference(repo, "WanVideoToVideoPipeline"))
            for name, repo in (("unipc", wan_repo), ("euler", euler_repo))}  # fmt: skip


@pytest.fixture(scope="module")
def lucy(lucy_repo: Path) -> Pair:
    """Lucy Edit."""
    return load(lucy_repo), load_reference(lucy_repo)


def reference(pair: Pair, video: list[Any], **fields: Any) -> torch.Tensor:
    """The reference's video, which is as long as the one that it is given."""
    fields.pop("num_frames")
    return theirs(pair[1], [CAT], ["blurry"], video=video, **fields)


@pytest.mark.parametrize("scheduler", ["unipc", "euler"])
@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ((48, 32), {"num_inference_steps": 5}),
        ((61, 45), {"num_inference_steps": 6, "strength": 0.5, "guidance_scale": 1.0}),
        ((20, 90), {"num_frames": 5, "height": 48, "width": 16, "num_inference_steps": 4, "strength": 1.0}),
        ((48, 32), {"num_frames": 1, "num_inference_steps": 4, "strength": 0.25}),
    ],
    ids=["default", "half", "all", "one-step"],
)
def test_a_given_video(pairs: dict[str, Pair], scheduler: str, size: tuple[int, int], fields: dict[str, Any]) -> None:
    fields = request(**fields)
    video = film(*size, fields["num_frames"])
    mine = ours(pairs[scheduler][0], [CAT], ["blurry"], {"video": video}, **fields)
    assert difference(mine, reference(pairs[scheduler], video, **fields)) < LEVEL


def test_less_strength_stays_closer_to_the_video(pairs: dict[str, Pair]) -> None:
    fields = request(num_inference_steps=10, guidance_scale=1.0)
    video = film(48, 32, 9)
    given = torch.from_numpy(np.stack([np.asarray(frame) for frame in video])).permute(3, 0, 1, 2)[None] / 255
    vae: Any = pairs["euler"][0].components["vae"]
    with torch.no_grad():  # what is left of a video that only goes through the VAE
        through = vae.decode(vae.encode(given * 2 - 1)) / 2 + 0.5
    far = []
    for strength in (0.1, 0.5, 1.0):
        made = ours(pairs["euler"][0], [CAT], [""], {"video": video}, strength=strength, **fields)
        far.append(float((made - through).abs().mean()))
    assert far[0] < far[1] < far[2]


def test_a_longer_video_gives_its_first_frames(pairs: dict[str, Pair]) -> None:
    fields = request(num_frames=5)
    video = film(48, 32, 9)
    expected = ours(pairs["unipc"][0], [CAT], [""], {"video": video[:5]}, **fields)
    assert torch.equal(ours(pairs["unipc"][0], [CAT], [""], {"video": video}, **fields), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"height": 64, "width": 96},
        {"height": 32, "width": 64, "num_frames": 5, "guidance_scale": 1.0},
        {"height": 96, "width": 32, "num_frames": 1},
    ],
    ids=["guided", "unguided", "one-frame"],
)
def test_lucy_edit(lucy: Pair, fields: dict[str, Any]) -> None:
    fields = request(**fields)
    video = film(61, 45, fields["num_frames"])
    mine = ours(lucy[0], [CAT], ["blurry"], {"video": video}, **fields)
    expected = theirs(lucy[1], [CAT], ["blurry"], video=video, **fields)
    assert difference(mine, expected) < LEVEL


def test_a_repo_that_is_for_this_alone(pairs: dict[str, Pair], wan_repo: Path, tmp_path: Path) -> None:
    repo = tiny_repos.make_renamed_repo(tmp_path / "repo", wan_repo, "WanVideoToVideoPipeline")
    media, fields = {"video": film(48, 32, 9)}, request()
    expected = ours(pairs["unipc"][0], [CAT], [""], media, **fields)
    assert torch.equal(ours(load(repo), [CAT], [""], media, **fields), expected)


@pytest.mark.parametrize(
    ("model", "media", "fields", "message"),
    [
        ("wan", {"video": film(8, 8, 3)}, {}, "video: has 3 frames, num_frames=9 asks for more; set num_frames to at"),
        ("wan", {}, {"strength": 0.5}, "strength=0.5: does nothing without a video; give one, or leave it out"),
        ("wan", {"video": film(8, 8, 9)}, {"strength": 0.2}, "strength=0.2: leaves none of 3 steps; use at least 0.34"),
        ("wan", {"video": film(8, 8, 9), "mask": picture(8, 8)}, {}, r"mask: this model takes none.*takes video\)"),
        ("lucy", {}, {}, "video: this model needs one"),
        ("lucy", {"video": film(8, 8, 9)}, {"strength": 0.5}, "strength=0.5: this model would ignore it"),
    ],
)
def test_a_bad_request_is_one_line(
    pairs: dict[str, Pair], lucy: Pair, model: str, media: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    pipeline = {"wan": pairs["unipc"], "lucy": lucy}[model][0]
    with pytest.raises(ValueError, match=message) as caught:
        ours(pipeline, [CAT], [""], media, **request(**fields))
    assert "\n" not in str(caught.value)
