"""Images and videos that clients send: looked at with limits, and refused before they are decoded in full."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.settings import ServerSettings

IMAGE, VIDEO = "image", "video"
LOOK_SECONDS = 20.0
"""For looking through one video."""
MOST_RATE = 120
"""Frames a second; a video of more is too long for what its length says."""
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4")
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
"""The EXIF tag, and its values that swap width and height."""
STILL = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")
"""Brands of files that are built like an MP4 and are images."""
_LOOKING = threading.Semaphore(2)
"""How many are looked at at a time: each may take as much memory as its limits allow."""


@dataclass(frozen=True)
class Form:
    """A file format that clients may send."""

    kind: str
    name: str
    suffix: str
    mime: str
    reader: str
    """What Pillow or libav calls it: nothing else reads the file, such as a playlist that names other files."""


PNG = Form(IMAGE, "PNG", ".png", "image/png", "PNG")
JPEG = Form(IMAGE, "JPEG", ".jpg", "image/jpeg", "JPEG")
WEBP = Form(IMAGE, "WebP", ".webp", "image/webp", "WEBP")
MP4 = Form(VIDEO, "MP4", ".mp4", "video/mp4", "mov")
WEBM = Form(VIDEO, "WebM", ".webm", "video/webm", "matroska")
BY_MIME = {form.mime: form for form in (PNG, JPEG, WEBP, MP4, WEBM)}
NAMES = {IMAGE: "a PNG, JPEG or WebP image", VIDEO: "an MP4, QuickTime, WebM or Matroska video"}


@dataclass(frozen=True)
class Look:
    """What one sees of an image or a video, turned as it is to be shown."""

    kind: str
    width: int
    height: int
    frames: int = 1
    fps: float | None = None
    shown: int = 0
    """Of a video to go on from: its last frames that the model is shown as a clip; 0: the last one, as an image."""

    @property
    def repeated(self) -> int:
        """How many frames of what the model makes of a video to go on from are in that already."""
        return max(1, self.shown)


@dataclass(frozen=True)
class Reference:
    """An image or a video that was found good."""

    data: bytes
    form: Form
    look: Look


def sniff(data: bytes) -> Form | None:
    """The format of a file, by how it begins; names and types that clients give count for nothing."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if data.startswith(b"\xff\xd8\xff"):
        return JPEG
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    if data[4:8] == b"ftyp" and data[8:12] not in STILL:
        return MP4
    return WEBM if data.startswith(b"\x1a\x45\xdf\xa3") else None


def looked_at(data: bytes, name: str, kinds: tuple[str, ...], settings: ServerSettings) -> Reference:
    """The image or video that `data` is.

    Args:
        data: a file.
        name: the field of the request that it is of.
        kinds: which of `IMAGE` and `VIDEO` it may be.
        settings: the limits.

    Raises:
        ApiError: 400, with the field: another kind of file, a broken one, one that moves and should not, or one that
            is larger than the limits.
    """
    form = sniff(data)
    if form is None or form.kind not in kinds:
        wanted = " or ".join(NAMES[kind] for kind in kinds)
        found = "something else" if form is None else f"{'an' if form.kind == IMAGE else 'a'} {form.kind}"
        raise _bad(name, f"must be {wanted}, and is {found}")
    with _LOOKING:
        look = (_look_at_image if form.kind == IMAGE else _look_at_video)(data, form, name, settings)
    return Reference(data, form, look)


def _look_at_image(data: bytes, form: Form, name: str, settings: ServerSettings) -> Look:
    with _whole(form, name), Image.open(io.BytesIO(data), formats=(form.reader,)) as image:
        _check_pixels(image.width, image.height, name, settings)
        # a JPEG of some cameras has further pictures behind the one that is shown
        if form is not JPEG and getattr(image, "n_frames", 1) > 1:
            raise _bad(name, "is an animated image; send one frame of it")
        sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
        image.load()
        width, height = image.size[::-1] if sideways else image.size
        return Look(IMAGE, width, height)


def _look_at_video(data: bytes, form: Form, name: str, settings: ServerSettings) -> Look:
    import av

    with _whole(form, name), av.open(io.BytesIO(data), mode="r", format=form.reader) as container:
        if not container.streams.video:
            raise _bad(name, "has no video stream")
        stream = container.streams.video[0]
        codec = stream.codec_context.codec.canonical_name
        if codec not in CODECS:
            raise _bad(name, f"its codec is {codec!r}; send one of {', '.join(CODECS)}")
        _check_pixels(stream.codec_context.width, stream.codec_context.height, name, settings)
        length = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / av.time_base
        _check_seconds(float(length), name, settings)
        fps = float(stream.average_rate or 0)
        return _decoded(container, name, fps, settings)


def _decoded(container: Any, name: str, fps: float, settings: ServerSettings) -> Look:
    """Looks at each frame and keeps none, until a limit is reached."""
    until = time.monotonic() + LOOK_SECONDS
    most = settings.max_video_megapixels * 1e6
    size, count = (0, 0), 0
    for frame in container.decode(video=0):
        here = (frame.width, frame.height) if round(frame.rotation / 90) % 2 == 0 else (frame.height, frame.width)
        size, count = size if count else here, count + 1
        if here != size:
            raise _bad(name, "its frames are of several sizes; send one size")
        if count == 1:
            _check_pixels(*size, name, settings)
        if count * size[0] * size[1] > most:
            raise _bad(name, f"has more than {settings.max_video_megapixels:g} million pixels in all frames; send a "
                             "smaller or shorter one")  # fmt: skip
        _check_seconds(count / MOST_RATE, name, settings)
        if time.monotonic() > until:
            raise _bad(name, f"takes more than {LOOK_SECONDS:g} s to decode; send a smaller or shorter one")
    if not count:
        raise _bad(name, "has no frames")
    return Look(VIDEO, *size, count, fps if fps > 0 else None)


def _check_pixels(width: int, height: int, name: str, settings: ServerSettings) -> None:
    most = settings.max_image_megapixels
    if not 0 < width * height <= most * 1e6:
        raise _bad(name, f"is {width}x{height}; at most {most:g} million pixels are allowed")


def _check_seconds(seconds: float, name: str, settings: ServerSettings) -> None:
    if seconds > settings.max_video_seconds:
        raise _bad(name, f"is longer than the {settings.max_video_seconds:g} seconds that are allowed")


def proportioned(shown: Reference, within: SamplingParam, multiple: int) -> tuple[int, int]:
    """Height and width of a video of `shown` that has about the pixels of `within`: those of `VideoGenerator`."""
    import torch

    from fastvideo.entrypoints.media_inputs import fitted
    from fastvideo.pipelines.pipeline_batch_info import MediaInputs

    shape = torch.empty((shown.look.height, shown.look.width, 3), dtype=torch.uint8, device="meta")
    return fitted(within, MediaInputs(image=shape), multiple)


def rate_of(video: Reference, otherwise: int) -> int:
    """The frames a second of a video, as a file of ours can have them."""
    return otherwise if video.look.fps is None else min(240, max(1, round(video.look.fps)))


@contextmanager
def _whole(form: Form, name: str) -> Iterator[None]:
    """Whatever a broken file raises is one error, which says nothing of this server."""
    try:
        yield
    except ApiError:
        raise
    except Image.DecompressionBombError:
        raise _bad(name, "has far more pixels than are allowed") from None
    except Exception:
        raise _bad(name, f"is broken: not a whole {form.name} file") from None


def _bad(name: str, rule: str) -> ApiError:
    return ApiError(400, f"{name}: {rule}", param=name, code="invalid_value")
