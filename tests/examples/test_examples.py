"""The examples, as they stand, on a small repo: only the size and the number of steps are made small."""

import runpy
import sys
from pathlib import Path

import pytest

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.media import read_frames, read_metadata
from tests import loras, tiny_repos
from tests.pipelines.wan_pairs import film, picture

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in a folder of the test's own; every model's defaults are 32x32 pixels and 2 steps."""
    small = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    monkeypatch.setattr(SamplingParam, "from_pretrained", lambda model: SamplingParam(**small))
    monkeypatch.chdir(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """Run an example as a script."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_text_to_video(
    wan_repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "text_to_video.py", wan_repo, "A vibrant city street at sunset.")
    made = tmp_path / "video_samples" / "A vibrant city street at sunset.mp4"
    assert read_frames(made).shape == (45, 32, 32, 3)
    assert capsys.readouterr().out.startswith("video_samples/A vibrant city street at sunset.mp4: ")


def test_batch_of_prompts(wan_repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("prompts.txt").write_text("a red cat\n\na green kite \n")
    run(monkeypatch, "batch_of_prompts.py", "prompts.txt", wan_repo)
    made = sorted((tmp_path / "video_samples").iterdir())
    assert [path.name for path in made] == ["a green kite.mp4", "a red cat.mp4"]
    assert [read_metadata(path)["request"]["seed"] for path in made] == [7, 7]


def test_progress(
    wan_repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "progress_and_cancel.py", 600, wan_repo)
    lines = capsys.readouterr().out.splitlines()
    assert "denoising: 0 of 2" in lines
    assert any(line.startswith("denoising: 2 of 2, ") for line in lines)
    assert lines[-1].startswith("video_samples/a green square bouncing on a black background.mp4: ")


def test_cancel(
    wan_repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # no seconds at all: the timer fires before the first step
    monkeypatch.setattr("threading.Timer.start", lambda timer: timer.function())
    run(monkeypatch, "progress_and_cancel.py", 0, wan_repo)
    assert capsys.readouterr().out.splitlines()[-1] == "stopped: the time was over"
    assert list((tmp_path / "video_samples").iterdir()) == []


def test_run_yaml(wan_repo: Path) -> None:
    small = ["--request.sampling.num_inference_steps", "2", "--frames", "9"]
    assert main(["generate", "--config", str(EXAMPLES / "run.yaml"), "--model", str(wan_repo), *small]) == 0
    request = read_metadata("outputs/star.mp4")["request"]
    assert request["prompt"] == "a yellow star spinning on a navy background"
    assert (request["seed"], request["num_frames"], request["num_inference_steps"]) == (7, 9, 2)


def test_image_to_video(
    i2v_repo: Path, flf2v_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(30, 60).save("first.png")
    picture(30, 60, seed=2).save("last.png")
    run(monkeypatch, "image_to_video.py", i2v_repo, "a red kite", "first.png")
    run(monkeypatch, "image_to_video.py", flf2v_repo, "a red kite", "first.png", "last.png")
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == ["5 frames of 16x32"] * 2


def test_two_experts(
    wan22_repo: Path, wan22_i2v_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(30, 60).save("first.png")
    run(monkeypatch, "two_experts.py", wan22_repo, "a red kite")
    run(monkeypatch, "two_experts.py", wan22_i2v_repo, "a red kite", "first.png")
    sizes = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()]
    assert sizes == ["(32, 32, 5)", "(32, 16, 5)"]


def test_text_and_image_to_video(
    ti2v_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(60, 60).save("first.png")
    run(monkeypatch, "text_and_image_to_video.py", ti2v_repo, "a red kite", "first.png")
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == ["(32, 32, 5)"] * 2


def test_lora(
    wan_repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = loras.write(tmp_path / "style.safetensors", loras.comfy(loras.make_pairs(1)))
    run(monkeypatch, "lora.py", path, wan_repo)
    assert capsys.readouterr().out.splitlines() == ["90 keys applied, 0 not", "see video_samples/"]
    made = {file.stem: file for file in (tmp_path / "video_samples").iterdir()}
    assert set(made) == {"strength_0.0", "strength_0.5", "strength_1.0", "merged"}
    frames = {name: read_frames(file).astype(int) for name, file in made.items()}
    assert (frames["strength_0.0"] != frames["strength_1.0"]).any()
    assert read_metadata(made["strength_0.0"])["lora"] is None
    assert read_metadata(made["merged"])["lora"]["merged"] is True


def test_video_to_video(
    wan_repo: Path, lucy_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = film(60, 60, 6)
    frames[0].save("walk.webp", save_all=True, append_images=frames[1:], lossless=True)
    run(monkeypatch, "video_to_video.py", wan_repo, "walk.webp", "a red kite", "0.6")
    run(monkeypatch, "video_to_video.py", lucy_repo, "walk.webp", "a red kite")
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == ["(32, 32, 5)"] * 2


def test_few_steps(
    rcm_repo: Path, dmd_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(monkeypatch, "few_steps.py", rcm_repo, "a red circle", "32x16")
    assert "s of denoising" in capsys.readouterr().out
    run(monkeypatch, "few_steps.py", dmd_repo, "a red kite", "32x16")
    assert "s of denoising" in capsys.readouterr().out
    assert read_frames(tmp_path / "video_samples" / "a red kite.mp4").shape == (61, 16, 32, 3)


def test_few_steps_from_an_image(
    ti2v_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    repo = tiny_repos.make_renamed_repo(tmp_path / "fastwan", ti2v_repo, "WanDMDPipeline")
    picture(40, 40).save("kite.png")
    run(monkeypatch, "few_steps.py", repo, "a kite", "32x32", "kite.png")
    assert "s of denoising" in capsys.readouterr().out
    assert read_frames(tmp_path / "video_samples" / "a kite.mp4").shape == (61, 32, 32, 3)


def test_control_video(vace_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    frames = film(60, 60, 6)
    frames[0].save("poses.webp", save_all=True, append_images=frames[1:], lossless=True)
    picture(30, 50).save("fox.png")
    picture(60, 60).save("mask.png")
    run(monkeypatch, "control_video.py", vace_repo, "a fox", "poses.webp", "fox.png")
    run(monkeypatch, "control_video.py", vace_repo, "a fox", "poses.webp", "", "mask.png")
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == ["(32, 32, 5)"] * 2


def test_fun_control(
    fun_control_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = film(60, 60, 5)
    frames[0].save("poses.webp", save_all=True, append_images=frames[1:], lossless=True)
    picture(30, 50).save("woman.png")
    run(monkeypatch, "fun_control.py", fun_control_repo, "a woman dances", "poses.webp", "woman.png")
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == ["(32, 32, 5)"]


def test_animate(animate_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("poses", "face", "street", "mask"):
        frames = film(30, 60, 9)
        frames[0].save(f"{name}.webp", save_all=True, append_images=frames[1:], lossless=True)
    picture(30, 50).save("dancer.png")
    short = {"height": 32, "width": 32, "num_inference_steps": 1, "segment_frame_length": 5, "guidance_scale": 1.0}
    monkeypatch.setattr(SamplingParam, "from_pretrained", lambda model: SamplingParam(**short))
    shown = ("a dancer", "dancer.png", "poses.webp", "face.webp")
    run(monkeypatch, "animate.py", animate_repo, *shown, 9)
    run(monkeypatch, "animate.py", animate_repo, *shown, 5, "street.webp", "mask.webp")
    # the size is the poses', and not the image's
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == ["(32, 16, 9)", "(32, 16, 5)"]


def test_stream(
    causal_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(monkeypatch, "stream.py", causal_repo, "a red kite", 33, "32x16")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" after ")[0] for line in lines] == ["9 frames", "21 frames", "33 frames"]
    assert [path.name for path in sorted((tmp_path / "frames").iterdir())] == [f"{n:05d}.png" for n in range(33)]


def test_stream_from_an_image(
    causal_i2v_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(32, 16).save("kite.png")
    run(monkeypatch, "stream.py", causal_i2v_repo, "a red kite", 13, "32x16", "kite.png")
    assert [line.split(" after ")[0] for line in capsys.readouterr().out.splitlines()] == ["1 frames", "13 frames"]
