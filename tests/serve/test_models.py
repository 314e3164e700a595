"""Real models behind the server: LoRAs by request, images, edits and extensions, each as the generator alone has it."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fastvideo import VideoGenerator
from fastvideo.entrypoints.media import read_frames, read_metadata, write_video
from tests import loras
from tests.serve.stand_in import Running, running, wait_until
from tests.serve.test_jobs import state_of

pytestmark = pytest.mark.slow
DEFAULTS = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "seed": 3, "fps": 8}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two LoRAs, by their names."""
    folder = tmp_path_factory.mktemp("loras")
    return {
        name: str(loras.write(folder / f"{name}.safetensors", loras.comfy(loras.make_pairs(seed))))
        for seed, name in enumerate(("ink", "clay"), 1)
    }


@pytest.fixture(scope="module")
def text(wan_repo: Path, adapters: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a text model, which takes videos too, and offers LoRAs."""
    model: Any = VideoGenerator.from_pretrained(wan_repo)
    with running(tmp_path_factory.mktemp("text"), model=model, defaults=DEFAULTS, loras=adapters) as made:
        yield made


def result(made: Running, path: str = "", files: dict[str, bytes] | None = None, **fields: Any) -> Path:
    """The file of a video."""
    fields = {"prompt": "a red kite", **fields}
    with httpx.Client(base_url=made.url, timeout=60) as web:
        body: dict[str, Any] = {"data": fields, "files": files} if files else {"json": fields}
        job = web.post(f"/v1/videos{path}", **body).raise_for_status().json()
        wait_until(lambda: state_of(web, job["id"]) in ("completed", "failed"))
        assert state_of(web, job["id"]) == "completed", web.get(f"/v1/videos/{job['id']}").text
    return Path(made.server.settings.data_dir) / "files" / f"{job['id']}.video.mp4"


class TestLoras:
    def test_each_request_has_its_own(
        self, text: Running, adapters: dict[str, str], wan_repo: Path, tmp_path: Path
    ) -> None:
        ink, both = [{"name": "ink"}], [{"name": "clay", "strength": 0.5}, {"name": "ink", "strength": -1}]
        made = [result(text, loras=asked) if asked else result(text) for asked in ([], ink, [], both, ink, [])]
        plain, first, after, two, again, last = (path.read_bytes() for path in made)
        assert plain == after == last, "bit for bit as if there were none"
        assert first == again
        assert len({plain, first, two}) == 3
        with VideoGenerator.from_pretrained(wan_repo) as alone:
            alone.set_lora_adapter("clay", adapters["clay"], 0.5)
            alone.set_lora_adapter("ink", adapters["ink"], -1.0, accumulate=True)
            file = tmp_path / "alone.mp4"
            alone.generate_video("a red kite", output_path=str(file), **DEFAULTS)  # type: ignore[call-overload]
        assert np.array_equal(read_frames(file), read_frames(made[3]))
        assert [one["nickname"] for one in read_metadata(made[3])["lora"]["adapters"]] == ["clay", "ink"]
        assert read_metadata(made[2])["lora"] is None

    def test_a_remix_has_them_too(self, text: Running) -> None:
        job = result(text, loras=[{"name": "ink"}]).name.split(".")[0]
        assert read_metadata(result(text, f"/{job}/remix", prompt="a kite"))["lora"]["adapters"][0]["nickname"] == "ink"

    @pytest.mark.parametrize(
        ("asked", "says"),
        [([{"name": "inc"}], "did you mean 'ink'? there are ink, clay"),
         ([{"name": "/etc/passwd"}], "there is no"), ([{"name": "ink"}, {"name": "ink"}], "twice"),
         ([{"name": "ink", "strength": 0}], "does nothing"), ([{"name": "ink", "strength": "inf"}], "finite"),
         ([{"name": "ink", "path": "x"}], "loras.0.path: no such field"), ("ink", "valid list")],
    )  # fmt: skip
    def test_what_is_refused(self, text: Running, asked: Any, says: str) -> None:
        answer = httpx.post(f"{text.url}/v1/videos", json={"prompt": "x", "loras": asked})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "loras")
        assert says in error["message"]

    def test_one_for_another_model_ends_the_server(self, wan_repo: Path, tmp_path: Path) -> None:
        model: Any = VideoGenerator.from_pretrained(wan_repo)
        (tmp_path / "bad.safetensors").write_bytes(b"no weights")
        with (
            pytest.raises(ValueError, match=r"bad\.safetensors"),
            running(tmp_path / "data", model=model, loras={"bad": str(tmp_path / "bad.safetensors")}),
        ):
            pass


def test_an_edit(text: Running, wan_repo: Path, tmp_path: Path) -> None:
    """What the generator alone makes of the same video."""
    rng = np.random.default_rng(0)
    source = write_video([rng.integers(0, 255, (32, 64, 3), np.uint8) for _ in range(7)], tmp_path / "in.mp4", 12, {})
    made = result(text, "/edits", {"video": source.read_bytes()}, strength="0.6", num_inference_steps="4")
    file = tmp_path / "alone.mp4"
    with VideoGenerator.from_pretrained(wan_repo) as alone:
        fields = DEFAULTS | {"fps": 12, "num_inference_steps": 4, "strength": 0.6}
        alone.generate_video("a red kite", video=source, output_path=str(file), **fields)  # type: ignore[call-overload]
    assert read_frames(made).shape == (5, 16, 32, 3), "as many frames as there are and the model makes"
    assert np.array_equal(read_frames(made), read_frames(file))
    said, alone_said = read_metadata(made), read_metadata(file)
    assert said["inputs"] == alone_said["inputs"]
    assert said["request"]["video_path"] is None, "no path of the server"


def test_an_image_and_an_extension(i2v_repo: Path, tmp_path: Path) -> None:
    model: Any = VideoGenerator.from_pretrained(i2v_repo)
    rng = np.random.default_rng(0)
    picture = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (60, 30, 3), np.uint8)).save(picture, format="PNG")
    (tmp_path / "in.png").write_bytes(picture.getvalue())
    with running(tmp_path / "data", model=model, defaults=DEFAULTS) as made:
        first = result(made, files={"input_reference": picture.getvalue()})
        second = result(made, "/extensions", video={"id": first.name.split(".")[0]}, seconds=0.5)
        before, after = read_frames(first), read_frames(second)
        file, last = tmp_path / "alone.mp4", Image.fromarray(before[-1])
        model.generate_video("a red kite", image=tmp_path / "in.png", output_path=str(file), **DEFAULTS)
        assert np.array_equal(read_frames(file), before)
        assert before.shape == (5, 32, 16, 3)
        model.generate_video("a red kite", image=last, output_path=str(file), **DEFAULTS | {"height": 32, "width": 16})
    assert after.shape == (9, 32, 16, 3)
    assert np.abs(after[:5].astype(int) - before).mean() < 4, "encoded again"
    alone, said = read_frames(file), read_metadata(second)
    assert said["inputs"] == read_metadata(file)["inputs"], "it starts from just that frame"
    likeness = [np.corrcoef(after[5 + n].ravel(), alone[1 + n].ravel())[0, 1] for n in range(4)]
    assert min(likeness) > 0.9, likeness
    assert said["extends"]["frames"] == 5


ANIMATED: dict[str, Any] = {"num_inference_steps": 2, "segment_frame_length": 5, "guidance_scale": 1.0, "height": 32,
                            "width": 32, "seed": 3}  # fmt: skip


@pytest.fixture(scope="module")
def animate(animate_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a model of an image and up to four videos."""
    model: Any = VideoGenerator.from_pretrained(animate_repo)
    with running(tmp_path_factory.mktemp("animate"), model=model, defaults=ANIMATED) as made:
        yield made


class TestAnimate:
    """Each video is in a field of its own."""

    @staticmethod
    def given(folder: Path, *names: str) -> dict[str, Path]:
        """Files of sizes of their own, by their fields; backgrounds and masks have one size."""
        rng, files = np.random.default_rng(0), {}
        for name in names:
            height, width = {"pose_video": (32, 48), "face_video": (24, 20)}.get(name, (30, 40))
            frames = [rng.integers(0, 255, (height, width, 3), np.uint8) for _ in range(7)]
            files[name] = write_video(frames, folder / f"{name}.mp4", 12, {})
        Image.fromarray(rng.integers(0, 255, (60, 30, 3), np.uint8)).save(folder / "in.png")
        return files | {"image": folder / "in.png"}

    @pytest.mark.parametrize(
        ("mode", "videos"),
        [("animate", ("pose_video", "face_video")),
         ("replace", ("pose_video", "face_video", "background_video", "mask_video"))],
    )  # fmt: skip
    def test_as_the_generator_alone(
        self, animate: Running, animate_repo: Path, tmp_path: Path, mode: str, videos: tuple[str, ...]
    ) -> None:
        media = self.given(tmp_path, *videos)
        files = {"input_reference" if name == "image" else name: path.read_bytes() for name, path in media.items()}
        made = result(animate, files=files, mode=mode)
        file = tmp_path / "alone.mp4"
        with VideoGenerator.from_pretrained(animate_repo) as alone:
            fields = ANIMATED | {"mode": mode, "num_frames": 7, "fps": 12, **media}
            alone.generate_video("a red kite", output_path=str(file), **fields)
        assert read_frames(made).shape == (7, 16, 32, 3), "of the proportions and the length of the poses"
        assert np.array_equal(read_frames(made), read_frames(file))
        said, alone_said = read_metadata(made), read_metadata(file)
        assert said["inputs"] == alone_said["inputs"]
        assert said["request"]["fps"] == 12

    @pytest.mark.parametrize(
        ("videos", "fields", "param", "says"),
        [
            (("pose_video",), {}, "face_video", "is missing; "),
            (("pose_video", "face_video"), {"mode": "replace"}, "mode", "needs background_video and mask_video"),
            (("pose_video", "face_video", "background_video", "mask_video"), {}, "background_video",
             "set mode to 'replace'"),
            (("pose_video", "face_video"), {"num_frames": "9"}, "pose_video", "has 7 frames, num_frames=9 asks for"),
            (("pose_video", "face_video"), {"mode": "dance"}, "mode", "'animate' or 'replace'"),
        ],
    )  # fmt: skip
    def test_what_is_refused(
        self, animate: Running, tmp_path: Path, videos: tuple[str, ...], fields: dict[str, Any], param: str, says: str
    ) -> None:
        media = self.given(tmp_path, *videos)
        files = {"input_reference" if name == "image" else name: path.read_bytes() for name, path in media.items()}
        answer = httpx.post(f"{animate.url}/v1/videos", data={"prompt": "x", **fields}, files=files)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert says in error["message"]

    def test_a_mask_of_another_size_is_refused_at_once(self, animate: Running, tmp_path: Path) -> None:
        media = self.given(tmp_path, "pose_video", "face_video", "background_video")
        files = {"input_reference" if name == "image" else name: path.read_bytes() for name, path in media.items()}
        answer = httpx.post(f"{animate.url}/v1/videos", data={"prompt": "x", "mode": "replace"},
                            files=files | {"mask_video": media["image"].read_bytes()})  # fmt: skip
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "mask_video"), error
        assert error["message"] == "mask_video: is 30x60, and background_video is 40x30; scale it"
