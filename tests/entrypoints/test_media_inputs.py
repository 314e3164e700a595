"""Images and videos that a model is shown: every way to give one, the limits, and what is refused."""

import http.server
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastvideo.configs.sample import SamplingParam
from fastvideo.entrypoints import media_inputs
from fastvideo.entrypoints.media import write_video
from fastvideo.entrypoints.media_inputs import digests, fitted, read_image, read_media, read_video
from fastvideo.pipelines.pipeline_batch_info import MediaInputs

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
CLIP = RNG.integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """PIXELS in a file."""
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the files in `tmp_path`; /away leads to a file on its own machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "file:///etc/hostname")
                self.end_headers()
                return
            super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_every_way_to_give_an_image_gives_the_same_pixels(png: Path, server: str) -> None:
    tensor = torch.from_numpy(PIXELS)
    ways: list[Any] = [
        png, str(png), f"{server}/image.png", Image.fromarray(PIXELS), PIXELS, PIXELS[None], tensor.movedim(-1, 0),
        tensor.movedim(-1, 0)[None], Image.fromarray(PIXELS).convert("RGBA"),
    ]  # fmt: skip
    for way in ways:
        assert torch.equal(read_image(way), tensor)
    floats = read_image(PIXELS.astype(np.float64) / 255)
    assert floats.dtype == torch.float32
    assert torch.allclose(floats * 255, tensor.float())
    grey = read_image(PIXELS[..., 0])
    assert torch.equal(grey, tensor[..., :1].expand(-1, -1, 3))


def test_every_way_to_give_a_video_gives_the_same_pixels(tmp_path: Path) -> None:
    for number, frame in enumerate(CLIP):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    tensor = torch.from_numpy(CLIP)
    pictures = [Image.fromarray(frame) for frame in CLIP]
    pictures[0].save(tmp_path / "clip.webp", save_all=True, append_images=pictures[1:], lossless=True)
    ways: list[Any] = [
        CLIP, list(CLIP), pictures, tensor.movedim(-1, 1), [str(tmp_path / f"{n}.png") for n in range(6)],
        tmp_path / "clip.webp",
    ]  # fmt: skip
    for way in ways:
        assert torch.equal(read_video(way, frames=9), tensor)
        assert torch.equal(read_video(way, frames=4), tensor[:4])


def test_a_film(tmp_path: Path) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 48, dtype=np.uint8)[:, None], (5, 32, 48, 3)).copy()
    write_video(smooth, tmp_path / "clip.mp4", 8, {})
    read = read_video(tmp_path / "clip.mp4", frames=3)
    assert read.shape == (3, 32, 48, 3)
    assert (read.float() - torch.from_numpy(smooth[:3]).float()).abs().mean() < 3


def test_photos_are_turned_as_they_say(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").shape == (7, 5, 3)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is of `width` x `height`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(9000, 9000), (20_000, 20_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_not_decoded(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(width, height))
    with pytest.raises(ValueError, match=r"image=.*pixels") as caught:
        read_image(tmp_path / "bomb.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "image.png"),
        (b"no image at all", "image.png"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "image.eps"),
        (bomb(64, 64), "image.png"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"image='.*': cannot be read as an image \(PNG.*; give another file"
    ) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"video='.*': cannot be read as a video"):
        read_video(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "image='nowhere.png': cannot be read: No such file or directory; give another path"),
        ("file:///etc/passwd", r"image='file:///etc/passwd': must be an http\(s\) URL, or a path"),
        ("ftp://host/x.png", r"must be an http\(s\) URL"),
        (7, "image: a int is no image or video; give a path"),
        (np.zeros((4, 4, 2), np.uint8), r"image=\(4, 4, 2\): must have 3 colours"),
        (np.zeros((4, 4, 3), np.int64), "image='torch.int64': must be uint8, or floats"),
        (np.full((4, 4, 3), 1.5), r"image='1.5 to 1.5': floats must be in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"floats must be in \[0, 1\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), "must be one image"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
    ],
)
def test_what_is_no_image_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)


def test_urls_have_limits(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"/none.png': cannot be fetched \(HTTP Error 404.*\); download it first"):
        read_image(f"{server}/none.png")
    with pytest.raises(ValueError, match="file:///etc/hostname' is not allowed"):
        read_image(f"{server}/away")
    monkeypatch.setattr(media_inputs, "MAX_BYTES", 100)
    (tmp_path / "long.png").write_bytes(bytes(200))
    with pytest.raises(ValueError, match="is longer than"):
        read_image(f"{server}/long.png")


def test_a_video_has_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_inputs, "MAX_VIDEO_PIXELS", 4 * 32 * 48)
    assert len(read_video(CLIP, frames=4)) == 4
    with pytest.raises(ValueError, match="make the video smaller or shorter"):
        read_video(CLIP, frames=5)
    with pytest.raises(ValueError, match="frames must be alike"):
        read_video([CLIP[0], CLIP[1][:16]], frames=5)
    with pytest.raises(ValueError, match="has no frames"):
        read_video([])


def request(**fields: Any) -> SamplingParam:
    return SamplingParam(num_frames=5, **fields)


def test_the_media_of_a_request(png: Path) -> None:
    media = read_media(request(image_path=str(png)), {"video": CLIP, "mask": CLIP[0], "reference_images": [PIXELS]})
    assert media.names == ("image", "video", "mask", "reference_images")
    assert media.video is not None
    assert media.mask is not None
    assert media.video.shape == media.mask.shape == (5, 32, 48, 3)
    assert all(torch.equal(frame, torch.from_numpy(CLIP[0])) for frame in media.mask)
    same = read_media(request(video_path=None, image_path=str(png)), {})
    assert digests(same) == {"image": digests(media)["image"]}
    assert digests(MediaInputs(image=torch.from_numpy(PIXELS.copy()))) == digests(same)
    assert digests(MediaInputs(image=torch.from_numpy(PIXELS[::-1].copy()))) != digests(same)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"video": CLIP[:3]}, "video: has 3 frames, num_frames=5 asks for more; set num_frames to at most 3"),
        ({"video": CLIP, "mask": CLIP[:, :16]}, "mask='48x16': must be of the video's size, '?48x32"),
        ({"video": CLIP, "mask": CLIP[:2]}, "mask: has 2 frames"),
    ],
)
def test_media_that_do_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_media(request(), given)


def test_the_same_thing_twice(png: Path) -> None:
    with pytest.raises(ValueError, match=r"image='...': is given, and so is image_path; leave one of them out"):
        read_media(request(image_path=str(png)), {"image": PIXELS})


@pytest.mark.parametrize(
    ("size", "area", "expected"),
    [
        ((1080, 1920), (480, 832), (464, 832)),
        ((1920, 1080), (480, 832), (832, 464)),
        ((500, 500), (480, 832), (624, 624)),
        ((10, 4000), (480, 832), (32, 12624)),
        ((33, 47), (32, 48), (32, 32)),
    ],
)
def test_the_size_follows_the_image(size: tuple[int, int], area: tuple[int, int], expected: tuple[int, int]) -> None:
    import math

    media = MediaInputs(image=torch.zeros(*size, 3, dtype=torch.uint8))
    sampling = SamplingParam(height=area[0], width=area[1])
    made = fitted(sampling, media, 16)
    # the formula of the reference's documentation
    proportion, pixels = size[0] / size[1], area[0] * area[1]
    documented = (round(math.sqrt(pixels * proportion)) // 16 * 16, round(math.sqrt(pixels / proportion)) // 16 * 16)
    assert made == expected == documented
    assert fitted(SamplingParam(height=64, width=64, image_fit="stretch"), media, 16) == (64, 64)
    assert fitted(sampling, MediaInputs(), 16) == area


def test_a_moving_image_from_memory_and_file_size(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(CLIP[0]).save(stream, "GIF", save_all=True, append_images=[Image.fromarray(CLIP[1])])
    (tmp_path / "clip.gif").write_bytes(stream.getvalue())
    assert read_video(tmp_path / "clip.gif", frames=5).shape == (2, 32, 48, 3)
    (tmp_path / "bomb.gif").write_bytes(bomb(60_000, 60_000))
    with pytest.raises(ValueError, match=r"cannot be read as a video|pixels"):
        read_video(tmp_path / "bomb.gif")


class Shown(SamplingParam):
    """Of a model that needs an image."""

    needs = ("image",)
    takes = ("last_image", "strength")


@pytest.mark.parametrize(
    ("model", "media", "fields", "message"),
    [
        (SamplingParam, ["image"], {}, r"image: this model takes none; .*\(it takes text alone\)"),
        (Shown, [], {}, "image: this model needs one; give image=..., image_path or its flag"),
        (Shown, ["image", "video"], {}, r"video: this model takes none.*\(it takes image, last_image\)"),
        (Shown, ["last_image"], {}, "last_image: without image; give image too"),
        (SamplingParam, [], {"strength": 0.5}, "strength=0.5: this model would ignore it; leave it out"),
        (Shown, ["image"], {"guidance_scale_2": 2.0}, "guidance_scale_2=2.0: this model would ignore it"),
    ],
)
def test_what_a_model_takes(model: type[SamplingParam], media: list[str], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParam(**fields).check_inputs(media, model)
    SamplingParam().check_inputs(["image", "last_image"], Shown)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_path": ""}, "image_path='': must be a path or a URL; in Python pixels go into"),
        ({"image_path": PIXELS}, "image_path='ndarray': must be a path or a URL"),
        ({"reference_paths": "x.png"}, "reference_paths='x.png': must be a list of paths or URLs"),
        ({"reference_paths": []}, "must be a list of paths"),
        ({"image_fit": "crop"}, "image_fit='crop': must be one of area, stretch"),
        ({"strength": 0}, "strength=0: must be more than 0"),
        ({"strength": 1.5}, "strength=1.5: must be a finite number, from 0 to 1"),
        ({"guidance_scale_2": -1}, "guidance_scale_2=-1"),
        ({"conditioning_scale": (1.0, -1)}, "conditioning_scale=-1"),
    ],
)
def test_fields_about_media_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParam(**fields).check()
