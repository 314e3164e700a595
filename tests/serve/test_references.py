"""Images and videos that clients send: every way in, what hostile ones come to, and that jobs keep them."""

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.media import read_frames, read_metadata, write_video
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.references import looked_at
from fastvideo.entrypoints.serve.settings import ServerSettings
from tests.serve.stand_in import FromImage, FromImages, FromVideo, Running, StandIn, running, wait_until
from tests.serve.test_jobs import state_of

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning", "ignore::UserWarning")
RED, GREEN = (220, 30, 30), (30, 160, 40)


def picture(width: int = 64, height: int = 32, kind: str = "PNG", **more: Any) -> bytes:
    """An image: red above, green below."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (0, height // 2, width, height))
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **more)
    return buffer.getvalue()


def clip(folder: Path, frames: int = 9, height: int = 32, width: int = 48, fps: int = 8) -> bytes:
    """A video that goes from dark to bright."""
    levels = np.linspace(20, 220, frames).astype(np.uint8)
    file = write_video([np.full((height, width, 3), level, np.uint8) for level in levels], folder / "in.mp4", fps, {})
    return file.read_bytes()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says to be enormous."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(bytes(10_000))) + png_chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    """Two images in one file."""
    buffer = io.BytesIO()
    first, second = (Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN))
    first.save(buffer, format=kind, save_all=True, append_images=[second], duration=100)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a model that starts from an image."""
    with running(tmp_path_factory.mktemp("image"), model=StandIn(FromImage), max_image_megapixels=4.0,
                 max_upload_mb=2.0) as made:  # fmt: skip
        yield made


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a model that takes videos and masks."""
    with running(tmp_path_factory.mktemp("video"), model=StandIn(FromVideo), max_video_megapixels=0.2,
                 max_video_seconds=20.0) as made:  # fmt: skip
        yield made


@pytest.fixture
def official(shows: Running) -> Iterator[openai.OpenAI]:
    """The official client of the first."""
    with openai.OpenAI(base_url=f"{shows.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(made: Running, path: str = "", uploads: dict[str, bytes] | None = None, **fields: Any) -> httpx.Response:
    """Ask for a video: in a form where there are uploads."""
    url, fields = f"{made.url}/v1/videos{path}", {"prompt": "kite", **fields}
    if uploads:
        return httpx.post(url, data=fields, files={name: ("x", data) for name, data in uploads.items()}, timeout=60)
    return httpx.post(url, json=fields, timeout=60)


def completed(made: Running, job_id: str) -> None:
    """Wait for a job."""
    with httpx.Client(base_url=made.url) as web:
        wait_until(lambda: state_of(web, job_id) == "completed")


def by_link(client: openai.OpenAI, path: str = "/videos", **fields: Any) -> openai.types.Video:
    """What the official client sends for a link: its methods take one by type and refuse it, so as their own call."""
    options: Any = {"headers": {"Content-Type": "multipart/form-data"}}
    return client.post(path, body={"prompt": "kite", **fields}, cast_to=openai.types.Video, options=options)


def refused(answer: httpx.Response, name: str) -> str:
    """The message of a 400 that names the field."""
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, name, "invalid_request_error"), error
    return str(error["message"])


class TestWaysIn:
    def check(self, made: Running, client: openai.OpenAI, video: Any) -> None:
        done = client.videos.poll(video.id, poll_interval_ms=20)
        assert (done.status, done.size) == ("completed", "32x16"), "the image's proportions within 32x32 pixels"
        assert np.array_equal(made.model.shown[-1]["image"], np.asarray(Image.open(io.BytesIO(picture()))))

    def test_uploads(self, shows: Running, official: openai.OpenAI, tmp_path: Path) -> None:
        file = tmp_path / "a.png"
        file.write_bytes(picture())
        for reference in (picture(), io.BytesIO(picture()), file, ("any/../name.exe", picture(), "text/html")):
            self.check(shows, official, official.videos.create(prompt="kite", input_reference=reference))

    def test_data_urls(self, shows: Running, official: openai.OpenAI) -> None:
        url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
        self.check(shows, official, by_link(official, input_reference={"image_url": url}))
        answer = ask(shows, input_reference={"image_url": url})
        self.check(shows, official, SimpleNamespace(id=answer.json()["id"]))
        # one that is larger than what forms allow of a field by default
        noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, format="PNG", compress_level=0)
        large = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        assert len(large) > 1.5 * 2**20
        assert by_link(official, input_reference={"image_url": large}).id

    def test_a_turned_photograph(self, shows: Running) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn it a quarter to the right
        made = ask(shows, uploads={"input_reference": picture(64, 32, "JPEG", exif=exif)}).json()
        assert made["size"] == "16x32"
        wait_until(
            lambda: len(shows.model.shown) and state_of(httpx.Client(base_url=shows.url), made["id"]) == "completed"
        )
        shown = shows.model.shown[-1]["image"]
        assert shown.shape == (64, 32, 3)
        assert np.abs(shown[32, 4].astype(int) - GREEN).max() < 30, "what was below is on the left"

    def test_the_id_of_a_video(self, edits: Running, tmp_path: Path) -> None:
        with openai.OpenAI(base_url=f"{edits.url}/v1", api_key="none", max_retries=0) as client:
            source = client.videos.create_and_poll(prompt="kite", poll_interval_ms=20, extra_body={"seed": 90})
            calls: dict[str, dict[str, Any]] = {
                "/videos": {"input_reference": {"file_id": source.id}},
                "/videos/edits": {"video": {"id": source.id}},
            }
            for path, fields in calls.items():
                video = by_link(client, path, **fields)
                assert client.videos.poll(video.id, poll_interval_ms=20).status == "completed"
                assert edits.model.shown[-1]["video"].shape == (5, 32, 32, 3)
                assert abs(int(edits.model.shown[-1]["video"].mean()) - 90) < 4

    def test_what_a_model_needs(self, shows: Running, tmp_path: Path) -> None:
        assert "is missing" in refused(ask(shows), "input_reference")
        assert "stand-in takes none" in refused(ask(shows, uploads={"last_frame": picture()}), "last_frame")
        made = httpx.post(f"{shows.url}/v1/images/generations", json={"prompt": "kite"})
        refused(made, "model")
        with running(tmp_path, model=StandIn(FromImages)) as both:
            assert "is missing" in refused(ask(both, uploads={"input_reference": picture()}), "last_frame")
            answer = ask(both, uploads={"input_reference": picture(), "last_frame": picture(32, 32)})
            assert answer.status_code == 200, answer.text
            wait_until(lambda: both.model.shown)
            assert both.model.shown[0]["last_image"].shape == (32, 32, 3)

    def test_fields_that_are_given_in_two_ways(self, shows: Running) -> None:
        url = {"image_url": "data:image/png;base64,AA"}
        answer = httpx.post(f"{shows.url}/v1/videos", files={"input_reference": picture()},
                            data={"prompt": "x", "input_reference[image_url]": "data:,"})  # fmt: skip
        assert "twice" in refused(answer, "input_reference")
        refused(ask(shows, input_reference=url | {"file_id": "x"}), "input_reference")
        refused(ask(shows, input_reference={}), "input_reference")
        refused(ask(shows, input_reference="/etc/passwd"), "input_reference")
        refused(ask(shows, input_reference={"image_url": "/etc/passwd"}), "input_reference")
        refused(ask(shows, input_reference={"file_id": "../../jobs.sqlite"}), "input_reference")


def truncated(data: bytes) -> bytes:
    """The first half."""
    return data[: len(data) // 2]


IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "must be a PNG"),
    "text": (lambda: b"no image at all", "must be a PNG"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "must be a PNG"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "must be a PNG"),
    "gif": (lambda: animation("GIF"), "must be a PNG"),
    "playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "must be a PNG"),
    "truncated png": (lambda: truncated(picture(640, 640, compress_level=0)), "is broken"),
    "truncated jpeg": (lambda: truncated(picture(640, 640, "JPEG")), "is broken"),
    "head alone": (lambda: b"\x89PNG\r\n\x1a\n", "is broken"),
    "bomb": (lambda: bomb(60_000, 60_000), "pixels"),
    "larger than allowed": (lambda: bomb(3000, 2000), "at most 4 million pixels"),
    "no width": (lambda: bomb(0, 9), "is broken"),
    "one wide": (lambda: bomb(5_000_000, 1), "at most 4 million pixels"),
    "animated png": (lambda: animation("PNG"), "animated"),
    "animated webp": (lambda: animation("WEBP"), "animated"),
    "text bomb": (lambda: picture()[:33] + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(90_000_000)))
                  + picture()[33:], "is broken"),
}  # fmt: skip


class TestHostileFiles:
    @pytest.mark.parametrize("name", IMAGES)
    def test_images(self, shows: Running, name: str) -> None:
        make, says = IMAGES[name]
        before = len(list((Path(shows.server.settings.data_dir) / "files").iterdir()))
        assert says in refused(ask(shows, uploads={"input_reference": make()}), "input_reference")
        assert len(list((Path(shows.server.settings.data_dir) / "files").iterdir())) <= before

    def test_an_image_where_a_video_is_wanted(self, shows: Running, edits: Running, tmp_path: Path) -> None:
        said = refused(ask(edits, "/edits", {"video": picture()}), "video")
        assert said == "video: must be an MP4, QuickTime, WebM or Matroska video, and is an image"
        assert "and is a video" in refused(ask(shows, uploads={"input_reference": clip(tmp_path)}), "input_reference")

    def test_videos(self, edits: Running, tmp_path: Path) -> None:
        good = clip(tmp_path)
        cases = {
            "text": (b"#EXTM3U\nfile:///etc/passwd", "must be an MP4"),
            "truncated": (truncated(good), "is broken"),
            "too long": (slow(tmp_path), "longer than the 20 seconds"),
            "too many pixels": (clip(tmp_path, frames=60, height=64, width=64), "0.2 million pixels"),
            "heic": (b"\0\0\0\x18ftypheic" + bytes(99), "must be an MP4"),
            "sound alone": (sound(tmp_path), "has no video stream"),
        }
        for name, (data, says) in cases.items():
            message = refused(ask(edits, "/edits", {"video": data}), "video")
            assert says in message, (name, message)
        with pytest.raises(ApiError, match=r"at most 0\.001 million pixels"):
            looked_at(good, "video", ("video",), ServerSettings(max_image_megapixels=0.001))

    def test_it_is_looked_at_frame_by_frame(
        self, edits: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded: list[int] = []
        monkeypatch.setattr("fastvideo.entrypoints.serve.references._check_seconds",
                            lambda seconds, *more: decoded.append(round(seconds * 120)))  # fmt: skip
        refused(ask(edits, "/edits", {"video": clip(tmp_path, frames=100, height=64, width=64)}), "video")
        assert max(decoded[1:]) == 48, "0.2 million pixels are 48 frames of 64x64"


def slow(folder: Path) -> bytes:
    """A few frames over minutes."""
    frames = [np.zeros((16, 16, 3), np.uint8)] * 3
    file = folder / "slow.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=1, options={"threads": "1"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            made = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
            made.pts = 60 * number
            container.mux(stream.encode(made))
        container.mux(stream.encode(None))
    return file.read_bytes()


def sound(folder: Path) -> bytes:
    """An MP4 without pictures."""
    file = folder / "sound.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.read_bytes()


def turned(mp4: bytes) -> bytes:
    """The same file, to be shown turned a quarter to the right, as telephones do it (ISO 14496-12, 8.3.2)."""
    place = mp4.index(b"tkhd") + 4 + 40
    one = 1 << 16
    return mp4[:place] + struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30) + mp4[place + 36 :]


def test_a_turned_video(edits: Running, tmp_path: Path) -> None:
    frames = [np.zeros((32, 64, 3), np.uint8) for _ in range(5)]
    for frame in frames:
        frame[:, 32:] = 200
    upright = write_video(frames, tmp_path / "a.mp4", 8, {}).read_bytes()
    answer = ask(edits, "/edits", {"video": turned(upright)})
    assert answer.json()["size"] == "16x32", answer.text
    completed(edits, answer.json()["id"])
    shown = edits.model.shown[-1]["video"]
    assert shown.shape == (5, 64, 32, 3)
    assert (shown[0, :28].max() < 30, shown[0, 36:].min() > 170) == (True, True), "what was right is below"


class TestEdits:
    def test_length_and_pace_are_those_of_the_video(self, edits: Running, tmp_path: Path) -> None:
        data = clip(tmp_path, frames=12, fps=6)
        made = ask(edits, "/edits", {"video": data}, strength="0.5").json()
        assert (made["num_frames"], made["fps"], made["size"], made["strength"]) == (9, 6, "32x16", 0.5)
        made = ask(edits, uploads={"input_reference": data}, num_frames="5", fps="24", image_fit="stretch",
                   size="16x48").json()  # fmt: skip
        assert (made["num_frames"], made["fps"], made["size"]) == (5, 24, "16x48")
        assert "asks for more" in refused(ask(edits, "/edits", {"video": data}, num_frames="13"), "video")
        assert "is missing" in refused(ask(edits, "/edits"), "video")
        assert "does nothing without a video" in refused(ask(edits, strength=0.5), "strength")
        assert "does nothing" in refused(ask(edits, image_fit="stretch"), "image_fit")

    def test_masks(self, edits: Running, tmp_path: Path) -> None:
        data = clip(tmp_path)
        good = ask(edits, "/edits", {"video": data, "mask": picture(48, 32)})
        assert good.status_code == 200, good.text
        completed(edits, good.json()["id"])
        assert edits.model.shown[-1]["mask"].shape == (32, 48, 3)
        assert "scale it" in refused(ask(edits, "/edits", {"video": data, "mask": picture(16, 16)}), "mask")
        assert "has 5 frames" in refused(ask(edits, "/edits", {"video": data, "mask": clip(tmp_path, 5)}), "mask")
        refused(ask(edits, uploads={"mask": picture()}), "mask")


class TestExtensions:
    def test_from_the_last_frame_joined_to_the_video(
        self, shows: Running, official: openai.OpenAI, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = clip(tmp_path)
        video = official.videos.extend(prompt="on and on", video=io.BytesIO(data), seconds="1")  # type: ignore[arg-type]
        assert (video.seconds, video.size) == ("2.125", "48x32"), "nine frames and eight more"
        done = official.videos.poll(video.id, poll_interval_ms=20)
        assert done.status == "completed", done.error
        shown = shows.model.shown[-1]["image"]
        assert abs(int(shown.mean()) - 220) < 4, "the last frame"
        file = tmp_path / "out.mp4"
        official.videos.download_content(video.id).write_to_file(file)
        frames, before = read_frames(file), read_frames(tmp_path / "in.mp4")
        assert frames.shape == (17, 32, 48, 3)
        assert np.abs(frames[:9].astype(int) - before).max() < 8
        assert read_metadata(file)["extends"]["frames"] == 9
        assert main(["replay", str(file)]) == 1
        assert "there is no way to make it again" in capsys.readouterr().err
        again = by_link(official, "/videos/extensions", video={"id": video.id}, seconds="1")
        assert official.videos.poll(again.id, poll_interval_ms=20).seconds == "3.125"

    def test_what_cannot_be_extended(self, shows: Running, edits: Running, tmp_path: Path) -> None:
        odd = clip(tmp_path, height=34)
        assert "must be a multiple of 16" in refused(ask(shows, "/extensions", {"video": odd}, seconds="1"), "video")
        data = clip(tmp_path)
        assert "more than this server" in refused(ask(shows, "/extensions", {"video": data}, seconds="99"), "seconds")
        assert "cannot extend" in refused(ask(edits, "/extensions", {"video": data}, seconds="1"), "video")
        refused(ask(shows, "/extensions", {"video": data}), "seconds")
        refused(ask(shows, "/extensions", seconds="1"), "video")


def test_a_job_keeps_its_reference(tmp_path: Path) -> None:
    """It survives a restart, goes into a remix, and is deleted with the job."""
    files = tmp_path / "files"
    with running(tmp_path, model=StandIn(FromImage)) as made, httpx.Client(base_url=made.url) as web:
        made.model.go.clear()
        first, second = (ask(made, uploads={"input_reference": picture()}).json()["id"] for _ in range(2))
        assert {path.name for path in files.iterdir()} == {f"{name}.input-image.png" for name in (first, second)}
        assert ask(made, uploads={"input_reference": picture()}, size="33x32", image_fit="stretch").status_code == 400
        assert len(list(files.iterdir())) == 2, "nothing is left of a request that is refused"
    (files / f"{first[:-5]}x_main.input-image.png").write_bytes(b"left by a server that died")
    with running(tmp_path, model=StandIn(FromImage), max_queue=1) as made, httpx.Client(base_url=made.url) as web:
        wait_until(lambda: state_of(web, second) == "completed")
        assert [shown["image"].shape for shown in made.model.shown] == [(32, 64, 3)] * 2
        assert len([path for path in files.iterdir() if "input" in path.name]) == 2
        remix = web.post(f"/v1/videos/{first}/remix", json={"prompt": "again"}).json()["id"]
        wait_until(lambda: state_of(web, remix) == "completed")
        assert np.array_equal(made.model.shown[2]["image"], made.model.shown[0]["image"])
        for job_id in (first, second, remix):
            assert web.delete(f"/v1/videos/{job_id}").status_code == 200
        assert list(files.iterdir()) == []
        made.model.go.clear()
        statuses = [ask(made, uploads={"input_reference": picture()}).status_code for _ in range(4)]
        assert 429 in statuses
        kept = [path for path in files.iterdir() if "input" in path.name]
        assert len(kept) == statuses.count(200)
        made.model.go.set()


def test_an_idempotent_request_is_kept_once(shows: Running) -> None:
    url, key = f"{shows.url}/v1/videos", {"Idempotency-Key": "once"}
    files = Path(shows.server.settings.data_dir) / "files"
    before = len([path for path in files.iterdir() if "input" in path.name])
    for data, status in ((picture(), 200), (picture(), 200), (picture(32, 32), 409)):
        answer = httpx.post(url, data={"prompt": "kite"}, files={"input_reference": data}, headers=key)
        assert answer.status_code == status, answer.text
    assert len([path for path in files.iterdir() if "input" in path.name]) == before + 1
