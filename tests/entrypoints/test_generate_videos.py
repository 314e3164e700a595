"""`generate_videos`: several requests in one call."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken
from fastvideo.pipelines.stages import together

SMALL: dict[str, Any] = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 3, "return_frames": True}
"""What all requests of `generate_videos` share."""


@pytest.fixture(scope="module")
def generator(wan_repo: Path) -> Iterator[VideoGenerator]:
    """A generator of the tiny model."""
    with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu") as made:
        yield made


@pytest.fixture(autouse=True)
def _always_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long passes take decides nothing here."""
    monkeypatch.setattr(together, "GAIN", math.inf)


class TestGenerateVideos:
    def test_each_is_what_it_is_alone(self, generator: VideoGenerator, tmp_path: Path) -> None:
        asked: list[Any] = [
            {"prompt": "kite", "seed": 5},
            "cat",
            {"prompt": "kite", "num_frames": 1},
            {"prompt": "kite"},
        ]
        heard: dict[int, Any] = {}
        results = generator.generate_videos(asked, on_result=heard.__setitem__, output_path=str(tmp_path), **SMALL)
        assert [heard[number] for number in range(4)] == results
        assert [result.batch_size for result in results] == [3, 3, 1, 3]  # type: ignore[union-attr]
        assert len({result.video_path for result in results}) == 4  # type: ignore[union-attr]
        for one, result in zip(asked, results, strict=True):
            own = {"prompt": one} if isinstance(one, str) else one
            alone = generator.generate_video(**SMALL | {"save_video": False} | own)
            assert torch.equal(alone.samples, result.samples)  # type: ignore[union-attr]
            assert Path(result.video_path).is_file()  # type: ignore[union-attr,arg-type]
            assert (result.seed, result.prompts) == (alone.seed, own["prompt"])  # type: ignore[union-attr]

    def test_a_file_for_all_is_numbered(self, generator: VideoGenerator, tmp_path: Path) -> None:
        file = str(tmp_path / "one.mp4")
        results = generator.generate_videos(
            ["a", "b", {"prompt": "c", "output_path": str(tmp_path / "c.mp4")}], output_path=file, **SMALL
        )
        alone = generator.generate_video(["a", "b"], output_path=file, **SMALL)
        assert [r.video_path for r in results[:2]] == [r.video_path for r in alone]  # type: ignore[union-attr]
        assert results[2].video_path == str(tmp_path / "c.mp4")  # type: ignore[union-attr]

    def test_what_ends_one(self, generator: VideoGenerator) -> None:
        token = CancelToken()
        token.cancel()
        asked = [{"prompt": "kite"}, {"prompt": "cat", "cancel": token}]
        fields = SMALL | {"save_video": False}
        results = generator.generate_videos(asked, return_exceptions=True, **fields)
        assert isinstance(results[1], Cancelled)
        assert not isinstance(results[0], Exception)
        with pytest.raises(Cancelled):
            generator.generate_videos(asked, **fields)

    @pytest.mark.parametrize(
        ("requests", "message"),
        [([], "requests"), ("kite", "requests"), ([{"seed": 1}], "prompt=None"), ([3], "requests=3"),
         (["kite", {"prompt": "cat", "num_frames": 6}], "num_frames=6"), ([{"prompt": "x", "sed": 1}], "'seed'")],
    )  # fmt: skip
    def test_what_is_wrong_is_said_before_anything_runs(
        self, generator: VideoGenerator, requests: Any, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            generator.generate_videos(requests, on_result=lambda *result: pytest.fail("it ran"), **SMALL)

    def test_who_batches(self, generator: VideoGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
        assert generator.batches
        monkeypatch.setattr(generator.args, "num_gpus", 2)
        assert not generator.batches
