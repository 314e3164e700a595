"""Images through the whole program: the Python interface, the command line, replay, and several processes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvideo import SamplingParam, VideoGenerator
from fastvideo.entrypoints import media
from fastvideo.entrypoints.cli.main import main
from tests import official_repos, tiny_repos
from tests.pipelines.wan_pairs import CAT, load_reference, picture, theirs

SMALL: dict[str, Any] = {
    "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 4.0, "seed": 5,
    "negative_prompt": "blurry", "save_video": False, "return_frames": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def generator(i2v_repo: Path) -> Iterator[VideoGenerator]:
    """Of the tiny image-to-video model, in fp32."""
    with VideoGenerator.from_pretrained(i2v_repo, precision="fp32", device="cpu") as made:
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A picture that is not of the video's proportions."""
    picture(64, 96).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def samples(generator: VideoGenerator, **fields: Any) -> torch.Tensor:
    result = generator.generate_video(CAT, **{**SMALL, **fields})
    assert not isinstance(result, list)
    assert result.samples is not None
    return result.samples


def test_the_size_follows_the_image_and_pixels_equal_the_reference(
    generator: VideoGenerator, i2v_repo: Path, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "fastvideo"):
        made = samples(generator, image=image)
    assert "an input of 64x96: the video is 32x48, which keeps its proportions within 48x32 pixels" in caplog.text
    expected = theirs(
        load_reference(i2v_repo), [CAT], ["blurry"], image=picture(64, 96), height=48, width=32, num_frames=5,
        num_inference_steps=2, guidance_scale=4.0, seed=5,
    )  # fmt: skip
    assert made.shape == expected.shape
    assert (made - expected).abs().max() < 1 / 255
    result = generator.generate_video(CAT, **SMALL, image=image)
    assert result.size == (48, 32, 5)
    assert torch.equal(samples(generator, image_path=str(image)), made)
    assert torch.equal(samples(generator, image=np.asarray(picture(64, 96))), made)
    assert samples(generator, image=image, image_fit="stretch").shape[-2:] == (32, 48)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "image: this model needs one; give image=..., image_path or its flag"),
        ({"image": "nowhere.png"}, "image='nowhere.png': cannot be read: No such file or directory"),
        ({"image": picture(8, 8), "image_path": "x.png"}, "image='...': is given, and so is image_path"),
        ({"image": picture(8, 8), "last_image": picture(8, 8)}, "last_image: this model takes none|takes"),
        ({"imag": 3}, "unknown|imag"),
    ],
)
def test_a_bad_request_is_one_line(generator: VideoGenerator, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        samples(generator, **fields)
    assert "\n" not in str(caught.value)


def test_an_image_for_a_model_of_text_alone(wan_repo: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu") as made:
        with pytest.raises(ValueError, match=r"image: this model takes none.*\(it takes video\)"):
            samples(made, image=image)
        sampling = SamplingParam(image_path=str(image))
        with pytest.raises(ValueError, match="image: this model takes none"):
            made.generate_video(CAT, sampling)
    # the command line says so before it loads anything
    assert main(["generate", "x", "--model", str(wan_repo), "--image", str(image)]) == 1
    assert "image: this model takes none; leave it out" in capsys.readouterr().err


def generate(repo: Path, output: str, *more: str) -> int:
    small = ["--size", "48x32", "--frames", "5", "--steps", "2", "--generator.precision", "fp32"]
    return main(["generate", CAT, "--model", str(repo), "-o", output, *small, *more])


def test_command_line_and_replay(
    i2v_repo: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        generate(i2v_repo, "a", "--image", "image.png", "--seed", "5", "--negative", "blurry", "--guidance", "4") == 0
    )
    assert "a: 5 frames of 32x48" in capsys.readouterr().out
    metadata = media.read_metadata("a")
    assert (metadata["request"]["height"], metadata["request"]["width"]) == (48, 32)
    assert metadata["request"]["image_path"] == "image.png"
    assert len(metadata["inputs"]["image"]) == 64
    with VideoGenerator.from_pretrained(i2v_repo, precision="fp32", device="cpu") as generator:
        frames = (samples(generator, image=image)[0] * 255).round().byte().permute(1, 2, 3, 0).numpy()
    assert (media.read_frames("a") == frames).all()
    assert main(["replay", "a"]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    # moved
    image.rename("moved.png")
    assert main(["replay", "a"]) == 1
    assert "image='image.png': cannot be read: No such file or directory" in capsys.readouterr().err
    assert main(["replay", "a", "--image", "moved.png"]) == 0
    # another
    picture(64, 96, seed=9).save("image.png")
    assert main(["replay", "a"]) == 1
    assert "image: not what the clip was made of; say where that is now" in capsys.readouterr().err
    assert main(["replay", "a", "--force"]) == 1
    assert "NOT the same" in capsys.readouterr().out


def test_a_clip_made_of_pixels_can_be_replayed_with_a_file(
    generator: VideoGenerator, tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {**SMALL, "save_video": True, "output_path": str(tmp_path / "a.webp")}
    generator.generate_video(CAT, **fields, image=picture(64, 96))
    assert main(["replay", str(tmp_path / "a.webp")]) == 1
    assert (
        "image='...': the clip was made of pixels that have no file; give them with --image" in capsys.readouterr().err
    )
    assert main(["replay", str(tmp_path / "a.webp"), "--image", str(image)]) == 0


def test_a_config_file(i2v_repo: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(
        json.dumps({"request": {"sampling": {"image_path": "image.png", "image_fit": "stretch"}}})
    )
    assert generate(i2v_repo, "a", "--config", "run.yaml") == 0
    assert media.read_frames("a").shape == (5, 32, 48, 3)


def test_two_processes_get_the_image(generator: VideoGenerator, i2v_repo: Path, image: Path) -> None:
    expected = samples(generator, image=image)
    with VideoGenerator.from_pretrained(i2v_repo, precision="fp32", device="cpu", num_gpus=2) as several:
        assert (samples(several, image=image) - expected).abs().max() < 1 / 255


@pytest.mark.parametrize("last", [False, True])
def test_an_official_folder_gives_the_same(tmp_path: Path, last: bool) -> None:
    source = tiny_repos.make_i2v_repo(tmp_path / "repo", last, image_encoder=official_repos.OFFICIAL_ENCODER)
    official = official_repos.make_official_i2v_repo(tmp_path / "official", source, last)
    images = {"image": picture(48, 32)} | ({"last_image": picture(48, 32, seed=4)} if last else {})
    made = []
    for repo in (source, official):
        with VideoGenerator.from_pretrained(repo, precision="fp32", device="cpu") as generator:
            made.append(samples(generator, **images, image_fit="stretch"))
    assert torch.equal(*made)
