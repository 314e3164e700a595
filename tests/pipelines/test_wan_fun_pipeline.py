"""The Wan models of VideoX-Fun against its pipelines, restated in `fun_published`: `diffusers` has none of them.
`parity_cases` has a request of each kind; there are more here."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.configs.registry import entry_for
from fastvideo.models.encoders.image_processor import ImageProcessor
from fastvideo.models.loader.component_loader import blueprint
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from tests import fun_repos
from tests.pipelines.fun_published import Models, published
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, film, load, ours, picture, request

IMAGE, LAST, OTHER = picture(61, 45), picture(30, 77, seed=4), picture(50, 50, seed=7)
EVERYTHING = {"video": film(61, 45, 5), "image": IMAGE, "last_image": LAST, "reference_images": [OTHER]}


class Pair:
    """Ours and the reference of one folder."""

    def __init__(self, repo: Path, kind: str) -> None:
        self.repo = repo
        self.kind = kind
        self.ours: ComposedPipelineBase = load(repo)

    @cached_property
    def models(self) -> Models:
        """The reference's."""
        return Models(self.repo, self.kind)

    def difference(self, media: dict[str, Any], prompts: list[str] | None = None, **fields: Any) -> float:
        """Of a request."""
        prompts, wanted = prompts or [CAT], request(**fields)
        negatives = ["blurry low"] * len(prompts)
        expected = published(self.models, wanted, media, prompts, negatives)
        return difference(ours(self.ours, prompts, negatives, media, **wanted), expected)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, fun_control_repo: Path) -> Iterator[Any]:
    """A pair of each kind, made when it is asked for."""
    made: dict[str, Pair] = {"control": Pair(fun_control_repo, "control")}

    def pair_of(kind: str) -> Pair:
        if kind not in made:
            made[kind] = Pair(fun_repos.make_fun_repo(tmp_path_factory.mktemp("fun") / kind, kind), kind)
        return made[kind]

    yield pair_of


TALL = {"height": 48, "width": 16, "num_frames": 5, "seed": 9, "guidance_scale": 1.0, "num_inference_steps": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "media", "fields"),
    [
        ("inp", {"image": IMAGE}, {"num_inference_steps": 2}),
        ("inp", {"image": IMAGE, "last_image": LAST}, TALL),
        ("inp", {}, TALL),
        ("control", {"video": film(61, 45, 9), "reference_images": [OTHER]}, {"num_inference_steps": 2}),
        ("control", {"video": film(16, 48, 5), "image": IMAGE}, TALL),
        ("control", {}, TALL),
        ("control-1.0", {"video": film(61, 45, 5), "image": IMAGE}, TALL),
        ("control-1.0", {"video": film(61, 45, 1), "image": IMAGE}, {**TALL, "num_frames": 1}),
        ("22-inp", {"image": IMAGE}, {"num_inference_steps": 3}),
        ("22-inp", {}, TALL),
        ("22-control", EVERYTHING, TALL),
        ("5b-inp", {"image": IMAGE, "last_image": LAST}, {"height": 64, "width": 32, "num_inference_steps": 2}),
        ("5b-inp", {}, {**TALL, "height": 32, "width": 64}),
        ("5b-control", {"video": film(61, 45, 5), "image": IMAGE, "reference_images": [OTHER]},
         {**TALL, "height": 32, "width": 64}),
    ],
)  # fmt: skip
def test_one_prompt(pairs: Any, kind: str, media: dict[str, Any], fields: dict[str, Any]) -> None:
    assert pairs(kind).difference(media, **fields) < LEVEL


@pytest.mark.slow
def test_two_prompts(pairs: Any) -> None:
    media = {"video": film(61, 45, 5), "reference_images": [OTHER]}
    fields = {**TALL, "guidance_scale": 3.0}
    assert pairs("control").difference(media, [CAT, "a blue star"], **fields) < LEVEL


@pytest.mark.slow
def test_a_reference_image_does_something(pairs: Any) -> None:
    wanted = request(**TALL)
    first, second = (
        ours(pairs("22-control").ours, [CAT], [""], {"reference_images": [image]}, **wanted) for image in (IMAGE, OTHER)
    )
    assert float((first - second).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("kind", "media", "message"),
    [
        ("inp", {"video": film(16, 16, 5)}, "video: this model takes none; .*\\(it takes image, last_image\\)"),
        ("inp", {"last_image": LAST}, "last_image: without image; give image too"),
        ("control", {"last_image": LAST}, "last_image: this model takes none"),
        ("control", {"reference_images": [IMAGE, OTHER]}, "reference_images=2: this model takes one"),
        ("control-1.0", {"reference_images": [IMAGE]}, "reference_images: this model takes none"),
        ("control", {"video": film(16, 48, 3)}, "video: has 3 frames, num_frames=5 asks for more"),
        ("control", {"mask": film(16, 48, 5)}, "mask: this model takes none"),
    ],
)
def test_a_bad_request_is_one_line(pairs: Any, kind: str, media: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ours(pairs(kind).ours, [CAT], [""], media, **request(**TALL))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "pipeline_class"),
    [
        ({"in_dim": 36, "dim": 1536}, "wan2.1-fun-1.3b-inp"),
        ({"in_dim": 48, "dim": 1536}, "wan2.1-fun-control"),
        ({"in_dim": 48, "dim": 1536, "_class_name": "WanTransformer3DModel"}, "wan2.1-fun-control"),
        ({"in_dim": 100, "out_dim": 48}, "wan2.2-fun-5b-inp"),
        ({"in_dim": 148, "out_dim": 48}, "wan2.2-fun-5b-control"),
        ({"in_dim": 36, "dim": 5120, "num_layers": 40}, "wan2.1-i2v-14b-480p"),
    ],
)
def test_what_a_folder_without_an_index_is(tmp_path: Path, config: dict[str, Any], pipeline_class: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanModel", "model_type": "i2v", **config}))
    assert entry_for(tmp_path).name == pipeline_class


def test_a_folder_that_says_no_more_than_a_plain_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "WanModel", "model_type": "i2v", "in_dim": 36, "dim": 5120}')
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanFunInpaintPipeline"}')
    assert entry_for(tmp_path).name == "wan2.1-fun-inp"


def test_control_by_a_camera_is_refused_by_name(pairs: Any, tmp_path: Path) -> None:
    repo = tmp_path / "camera"
    repo.mkdir()
    for path in pairs("control").repo.iterdir():
        (repo / path.name).symlink_to(path)
    config = json.loads((repo / "config.json").read_text())
    (repo / "config.json").unlink()
    for changes in ({"add_control_adapter": True}, {"add_control_adapter": True, "in_dim": 32}):
        (repo / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match="control by the path of a camera is not supported; use another") as caught:
            blueprint(resolve_repo(repo).components["transformer"])
        assert "\n" not in str(caught.value)


def test_weights_of_another_kind_are_refused(pairs: Any, tmp_path: Path) -> None:
    repo = tmp_path / "wrong"
    repo.mkdir()
    for path in pairs("control-1.0").repo.iterdir():
        (repo / path.name).symlink_to(path)
    (repo / "config.json").unlink()
    config = json.loads((pairs("control-1.0").repo / "config.json").read_text())
    (repo / "config.json").write_text(json.dumps(config))
    (repo / "model_index.json").write_text('{"_class_name": "WanFunInpaintPipeline"}')
    with pytest.raises(ValueError, match=r"no official layout is known for \{'model_type': 'i2v', 'in_dim': 48"):
        load(repo)


def test_an_image_squeezed_into_a_square() -> None:
    # black, and white at the left and at the right end, which the cut leaves out
    pixels = torch.zeros(8, 32, 3, dtype=torch.uint8)
    pixels[:, :4] = pixels[:, -4:] = 255
    plain = ImageProcessor(size=8, crop=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    whole = ImageProcessor(size=8, crop=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, whole=True)
    assert plain(pixels).abs().max() == 0
    assert whole(pixels)[:, :, 0].min() > 0.9
    assert whole(pixels)[:, :, -1].min() > 0.9
    assert whole(pixels)[:, :, 3].max() < 0.1
