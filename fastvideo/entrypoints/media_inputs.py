"""Images and videos that a model is shown: from paths, URLs, PIL images, arrays and tensors, with limits.

What comes from outside is held to limits before it is decoded, and whatever is wrong with it is one line.
"""

import hashlib
import io
import math
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import torch

from fastvideo.configs.sample.base import MASKS, MEDIA, VIDEOS, SamplingParam
from fastvideo.entrypoints.media import BT709
from fastvideo.logger import init_logger
from fastvideo.pipelines.pipeline_batch_info import MediaInputs
from fastvideo.utils import require

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
logger = init_logger(__name__)

MAX_IMAGE_PIXELS = 1 << 26
"""Of one image or frame: 8192 x 8192."""
MAX_VIDEO_PIXELS = 1 << 30
"""Of all frames that are read: 3 GiB of them."""
MAX_BYTES = 1 << 29
"""Of a file that is read from a URL."""
URL_SECONDS = 30.0
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Image formats that are opened: none that runs another program."""
MOVING = (".gif", ".webp")
"""Suffixes of moving images that Pillow decodes."""
PIXELS = "give a path, an http(s) URL, a PIL image, or pixels: uint8, or floats in [0, 1]"


def read_media(sampling: SamplingParam, given: Mapping[str, Any]) -> MediaInputs:
    """The media of a request.

    Args:
        sampling: its paths and URLs, and how many frames are wanted.
        given: by the names in `MEDIA`, what was handed over in Python in place of a path; None is nothing.

    Raises:
        ValueError: something is given twice, is not what it should be, is larger than the limits, or does not go with
            the rest.
    """
    sources = {}
    for name, field in MEDIA.items():
        here, path = given.get(name), getattr(sampling, field)
        require(here is None or path is None, name, "...", f"is given, and so is {field}", "leave one of them out")
        if here is not None or path is not None:
            sources[name] = path if here is None else here
    frames = sampling.num_frames
    pictures = {name: read_image(sources[name], name) for name in ("image", "last_image") if name in sources}
    references = sources.get("reference_images", ())
    if not isinstance(references, (list, tuple)):
        references = [references]
    films = (*VIDEOS, *MASKS, "start_video")
    clips = {name: read_video(sources[name], name, frames) for name in films if name in sources}
    for name in VIDEOS:
        if name in clips:
            check_length(clips[name], name, frames)
    for mask, of in MASKS.items():
        if mask in clips and of in clips:
            clips[mask] = matched(clips[mask], clips[of], frames, mask, of)
    if len(clips.get("start_video", ())) >= frames:
        raise ValueError(f"start_video: has at least {frames} frames, so nothing would follow within "
                         f"num_frames={frames}; set num_frames above its length, or give fewer")  # fmt: skip
    return MediaInputs(
        reference_images=tuple(read_image(one, "reference_images") for one in references), **pictures, **clips
    )


def matched(mask: torch.Tensor, video: torch.Tensor, frames: int, name: str, of: str) -> torch.Tensor:
    """`mask`, called `name`, for each frame of `video`, called `of`: one is for all of them.

    Raises:
        ValueError: it is of another size, or of fewer frames.
    """
    size, wanted = ("x".join(str(extent) for extent in (clip.shape[2], clip.shape[1])) for clip in (mask, video))
    what = "the video" if of == "video" else of
    require(size == wanted, name, size, f"must be of {what}'s size, {wanted}", "scale one of them")
    if len(mask) == 1:
        return mask.expand(len(video), -1, -1, -1)
    check_length(mask, name, frames)
    return mask


def check_length(clip: torch.Tensor, name: str, frames: int) -> None:
    """Raise a `ValueError` unless `clip` has `frames` frames."""
    if len(clip) < frames:
        raise ValueError(
            f"{name}: has {len(clip)} frames, num_frames={frames} asks for more; set num_frames to at most {len(clip)}"
        )


def read_image(source: Any, name: str = "image") -> torch.Tensor:
    """The pixels [H, W, 3] of `source`, uint8, or fp32 in [0, 1] where it has floats.

    Raises:
        ValueError: it is no image, or has more than `MAX_IMAGE_PIXELS`.
    """
    from PIL import Image

    if isinstance(source, (str, Path)):
        return opened(
            source, name, "an image (PNG, JPEG, WebP, BMP, GIF or TIFF)", lambda file: _decode_image(file, name)
        )
    if isinstance(source, Image.Image):
        return _picture(source, name)
    pixels = as_pixels(source, name)
    require(pixels.ndim == 3 or len(pixels) == 1, name, tuple(pixels.shape), "must be one image", PIXELS)
    return check_pixels(pixels.reshape(pixels.shape[-3:]), name)


def read_video(source: Any, name: str = "video", frames: int = 81) -> torch.Tensor:
    """The first `frames` frames [T, H, W, 3] of `source`, fewer if it has fewer; uint8, or fp32 in [0, 1].

    Raises:
        ValueError: it is no video, or larger than the limits.
    """
    from PIL import Image

    if isinstance(source, (str, Path)):
        return opened(source, name, "a video or an image", lambda file: _decode_video(file, source, name, frames))
    if isinstance(source, Image.Image):
        return _picture(source, name)[None]
    if isinstance(source, (list, tuple)):
        require(len(source) > 0, name, source, "has no frames", PIXELS)
        return stacked((read_image(one, name) for one in source), name, frames, more=len(source) > frames)
    pixels = as_pixels(source, name)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    return stacked(iter(pixels), name, frames, more=len(pixels) > frames)


def stacked(pictures: Iterator[torch.Tensor], name: str, frames: int, more: bool | None = None) -> torch.Tensor:
    """Up to `frames` of `pictures` as a video. `more` says whether there are others; None looks."""
    found: list[torch.Tensor] = []
    for picture in islice(pictures, frames):
        found.append(check_pixels(picture, name))
        same = picture.shape == found[0].shape and picture.dtype == found[0].dtype
        require(same, name, tuple(picture.shape), f"frames must be alike, and the first is {tuple(found[0].shape)}")
        total = len(found) * picture.shape[0] * picture.shape[1]
        require(total <= MAX_VIDEO_PIXELS, name, total, f"at most {MAX_VIDEO_PIXELS} pixels in all frames are read",
                "make the video smaller or shorter")  # fmt: skip
    require(bool(found), name, "...", "has no frames", PIXELS)
    if more or (more is None and next(pictures, None) is not None):
        logger.info("%s: its first %d frames are used", name, frames)
    return torch.stack(found)


def as_pixels(source: Any, name: str) -> torch.Tensor:
    """An array [..., H, W, 3] or a tensor [..., 3, H, W] as pixels [..., H, W, 3]; two dimensions are grey."""
    if isinstance(source, torch.Tensor):
        pixels = source.detach().cpu()
        pixels = pixels.movedim(-3, -1) if pixels.ndim in (3, 4) else pixels
    elif isinstance(source, np.ndarray):
        pixels = torch.from_numpy(np.ascontiguousarray(source))
    else:
        raise ValueError(f"{name}: a {type(source).__name__} is no image or video; {PIXELS}")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    shape = tuple(source.shape)
    require(pixels.ndim in (3, 4), name, shape, "must be one image, or the frames of one video", PIXELS)
    require(
        pixels.shape[-1] in (1, 3), name, shape, "must have 3 colours: [H, W, 3] of an array, [3, H, W] of a tensor"
    )
    require(pixels.dtype == torch.uint8 or pixels.is_floating_point(), name, str(pixels.dtype),
            "must be uint8, or floats in [0, 1]")  # fmt: skip
    if pixels.is_floating_point():
        pixels = pixels.float()
        low, high = (float(pixels.min()), float(pixels.max())) if pixels.numel() else (0.0, 0.0)
        require(
            low >= 0 and high <= 1, name, f"{low:g} to {high:g}", "floats must be in [0, 1]", "scale them, or use uint8"
        )
    return pixels.expand(*pixels.shape[:-1], 3).contiguous()


def check_pixels(pixels: torch.Tensor, name: str) -> torch.Tensor:
    """`pixels` [H, W, 3], if there are any and not too many."""
    height, width = pixels.shape[:2]
    require(height > 0 and width > 0, name, tuple(pixels.shape), "has no pixels")
    check_size(width, height, name)
    return pixels


def check_size(width: int, height: int, name: str) -> None:
    """Raise a `ValueError` when an image is too large to be decoded."""
    require(width * height <= MAX_IMAGE_PIXELS, name, f"{width}x{height}",
            f"has more than {MAX_IMAGE_PIXELS} pixels, which takes too much memory", "scale it down")  # fmt: skip


# ---- Files and URLs ----


def opened(source: str | Path, name: str, kind: str, decode: Callable[[io.IOBase], T]) -> T:
    """What `decode` makes of the file or URL `source`.

    Raises:
        ValueError: it cannot be read, or is not of `kind`.
    """
    with _stream(source, name) as file:
        try:
            return decode(file)
        except ValueError as error:
            if str(error).startswith(f"{name}="):
                raise
            reason: Exception = error
        except Exception as error:  # what a broken file raises depends on its format
            reason = error
    said = str(reason).splitlines()[0][:120] if str(reason) else type(reason).__name__
    raise ValueError(f"{name}={str(source)!r}: cannot be read as {kind} ({said}); give another file")


@contextmanager
def _stream(source: str | Path, name: str) -> Iterator[Any]:
    if "://" in str(source):
        with _fetched(str(source), name) as file:
            yield file
        return
    try:
        file = Path(source).expanduser().open("rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{name}={str(source)!r}: cannot be read: {reason}; give another path") from None
    with file:
        yield file


def check_url(url: str, name: str) -> None:
    """Raise a `ValueError` unless `url` is http(s)."""
    scheme = urlsplit(url).scheme.lower()
    require(scheme in ("http", "https"), name, url, "must be an http(s) URL, or a path", "download it first")


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Follows no redirect away from http(s)."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_url(newurl, "redirect")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _fetched(url: str, name: str) -> Iterator[Any]:
    """The content behind `url`, in a temporary file that is at most `MAX_BYTES` long."""
    check_url(url, name)
    request = urllib.request.Request(url, headers={"User-Agent": "fastvideo"})
    with tempfile.TemporaryFile() as file:
        try:
            with urllib.request.build_opener(_HttpOnly).open(request, timeout=URL_SECONDS) as answer:
                while block := answer.read(1 << 20):
                    file.write(block)
                    require(
                        file.tell() <= MAX_BYTES, name, url, f"is longer than {MAX_BYTES >> 20} MiB", "make it smaller"
                    )
        except (OSError, urllib.error.URLError) as error:
            reason = str(error).splitlines()[0][:120]
            raise ValueError(f"{name}={url!r}: cannot be fetched ({reason}); download it first") from None
        file.seek(0)
        yield file


def _decode_image(file: Any, name: str) -> torch.Tensor:
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the lower limit
        with Image.open(file, formats=FORMATS) as image:
            check_size(image.width, image.height, name)
            return _picture(ImageOps.exif_transpose(image), name)


def _picture(image: "Image.Image", name: str) -> torch.Tensor:
    check_size(image.width, image.height, name)
    return check_pixels(torch.from_numpy(np.array(image.convert("RGB"))), name)


def _decode_video(file: Any, source: str | Path, name: str, frames: int) -> torch.Tensor:
    if Path(urlsplit(str(source)).path).suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".tiff", ".tif"):
        return _decode_image(file, name)[None]
    if Path(urlsplit(str(source)).path).suffix.lower() in MOVING:
        return stacked(_moving_image(file, name), name, frames)
    return stacked(_film(file, name), name, frames)


def _moving_image(file: Any, name: str) -> Iterator[torch.Tensor]:
    from PIL import Image, ImageSequence

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            check_size(image.width, image.height, name)
            for frame in ImageSequence.Iterator(image):
                yield _picture(frame, name)


def _film(file: Any, name: str) -> Iterator[torch.Tensor]:
    import av

    with av.open(file, mode="r") as container:
        require(bool(container.streams.video), name, "...", "has no video stream", "give another file")
        context = container.streams.video[0].codec_context
        check_size(context.width, context.height, name)
        for frame in container.decode(video=0):
            check_size(frame.width, frame.height, name)
            tagged = BT709 if frame.colorspace == BT709 else None
            pixels = frame.to_ndarray(format="rgb24", src_colorspace=tagged)
            # telephones write frames as their sensors have them, and how to turn them
            yield torch.from_numpy(np.rot90(pixels, round(frame.rotation / 90)).copy() if frame.rotation else pixels)


# ---- Size, and what a clip's file says ----


def fitted(
    sampling: SamplingParam, media: MediaInputs, multiple: int, by: Sequence[str] = SamplingParam.sized_by
) -> tuple[int, int]:
    """Height and width of the video: the proportions of the first of the media `by` that is given, with at most as many
    pixels as the request has, in multiples of `multiple` (as `diffusers` documents it for these models)."""
    shown: torch.Tensor | None = next((getattr(media, name) for name in by if name in media.names), None)
    if shown is None or sampling.image_fit != "area":
        return sampling.height, sampling.width
    shown = shown[0] if shown.ndim == 4 else shown
    area, proportion = sampling.height * sampling.width, shown.shape[0] / shown.shape[1]
    height = max(multiple, round(math.sqrt(area * proportion)) // multiple * multiple)
    width = max(multiple, round(math.sqrt(area / proportion)) // multiple * multiple)
    logger.info(
        "an input of %dx%d: the video is %dx%d, which keeps its proportions within %dx%d pixels (image_fit='stretch' "
        "would keep %dx%d)", shown.shape[1], shown.shape[0], width, height, sampling.width, sampling.height,
        sampling.width, sampling.height,
    )  # fmt: skip
    return height, width


def digests(media: MediaInputs) -> dict[str, str]:
    """The SHA-256 of the pixels of each of the media that is there, by its name."""
    found = {}
    for name in media.names:
        value: torch.Tensor | Sequence[torch.Tensor] = getattr(media, name)
        digest = hashlib.sha256()
        for pixels in [value] if isinstance(value, torch.Tensor) else value:
            digest.update(repr((pixels.dtype, tuple(pixels.shape))).encode())
            digest.update(pixels.contiguous().numpy().tobytes())
        found[name] = digest.hexdigest()
    return found
