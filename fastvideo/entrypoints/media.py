"""Clips as files: MP4, animated GIF and WebP, folders of PNGs, contact sheets, and the metadata that they carry.

A file appears under its own name once it is complete, never before: an error, a full disk or Ctrl-C leaves nothing.
"""

import contextlib
import errno
import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastvideo.utils import atomic_path

if TYPE_CHECKING:
    from PIL import Image

Frames = npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]]
"""[T, H, W, 3], or T arrays [H, W, 3]: RGB, 0 to 255."""

SUFFIXES = (".mp4", ".gif", ".webp")
PNG_PATTERN = "%04d.png"
PNG_KEY = "fastvideo"
IMAGE_DESCRIPTION = 0x010E  # the EXIF tag
BT709 = 1  # ITU-T H.273: the same number for primaries, transfer and matrix
LIMITED_RANGE = 1  # 16 to 235: what players take H.264 for
NAME_CHARACTERS, NAME_BYTES = 100, 200


def output_file(output_path: str | Path, prompt: str, suffix: str = ".mp4") -> Path:
    """The file that a clip of `prompt` goes to, in a folder that exists and can be written.

    A path with a known suffix is used as it is, and so is `FOLDER/%04d.png`, a folder of PNGs. Everything else is a
    folder: the file in it is named after the prompt, with a number where that name is taken.

    Raises:
        ValueError: the suffix is not one that can be written.
        OSError: the folder cannot be written.
    """
    path = Path(output_path).expanduser()
    as_folder = str(output_path).endswith((os.sep, "/")) or path.is_dir() or not path.suffix
    if not as_folder:
        if kind(path) == "png":
            check_writable(path.parent.parent)
            check_replaceable(path)
        else:
            check_writable(path.parent)
        return path
    check_writable(path)
    stem = file_stem(prompt)
    names = (f"{stem}{suffix}" if number == 0 else f"{stem}_{number}{suffix}" for number in range(1_000_000))
    return next(path / name for name in names if not (path / name).exists())


def output_files(output_path: str | Path, prompt: str, count: int, suffix: str = ".mp4") -> list[Path]:
    """`output_file` for `count` clips of one prompt: from the second on, each gets its number."""
    first = output_file(output_path, prompt, suffix)
    if first.suffix == ".png":
        folder = first.parent
        numbered = [folder.with_name(f"{folder.name}_{number}") / first.name for number in range(1, count)]
        for other in numbered:
            check_replaceable(other)
        return [first, *numbered]
    exact = first == Path(output_path).expanduser()
    paths, number = [first], 0
    while len(paths) < count:
        number += 1
        candidate = first.with_name(f"{first.stem}_{number}{first.suffix}")
        if exact or not candidate.exists():
            paths.append(candidate)
    return paths


def file_stem(prompt: str) -> str:
    """The first 100 characters of the prompt as a file name for every system."""
    clean = re.sub(r"[^\w\s,.'()+=-]", "", prompt[:NAME_CHARACTERS])
    clean = re.sub(r"\s+", " ", clean).strip(" .")
    while len(clean.encode()) > NAME_BYTES:
        clean = clean[:-1]
    return clean.strip(" .") or "video"


def kind(path: Path) -> str:
    """What `path` asks for: one of SUFFIXES, or "png" for a folder of PNGs.

    Raises:
        ValueError: none of them.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return suffix
    if suffix == ".png" and re.fullmatch(r"[^%]*%0\d+d[^%]*", path.name):
        return "png"
    if suffix == ".png":
        raise ValueError(f"{path}: one PNG holds one frame; name a folder, or FOLDER/{PNG_PATTERN}")
    if not suffix or path.is_dir():
        return "png"
    raise ValueError(
        f"{path}: {suffix} cannot be written; use one of {', '.join(SUFFIXES)}, or a folder with / at its end"
    )


def frames_pattern(path: Path) -> Path:
    """FOLDER/%04d.png for a path of kind "png", which may name the folder alone."""
    return path if path.suffix.lower() == ".png" else path / PNG_PATTERN


def on_disk(path: str | Path) -> Path:
    """The file that `write_video` makes of `path`, or the folder when that is a folder of PNGs."""
    path = Path(path)
    return path.parent if path.suffix.lower() == ".png" else path


def check_writable(folder: Path) -> None:
    """Make `folder` if it is missing and prove that a file can be made in it.

    Raises:
        OSError: it cannot.
    """
    with one_line_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def check_replaceable(pattern: Path) -> None:
    """Frames may be written as `pattern`, FOLDER/%04d.png, only if nothing but such frames would be lost.

    Raises:
        FileExistsError: the folder holds something else, or is a file.
    """
    folder = pattern.parent
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; name a folder for the PNGs")
    ours = re.compile(re.sub(r"%0\d+d", r"\\d+", re.escape(pattern.name)))
    foreign = [path.name for path in folder.iterdir() if not ours.fullmatch(path.name)]
    if foreign:
        raise FileExistsError(f"{folder}: holds other files ({foreign[0]}); name a new or empty folder for the PNGs")


@contextlib.contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Errors of the file system as one line that names `path`, the reason and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # already one of ours
            raise
        reason = error.strerror or os.strerror(error.errno)
        fix = "free some space there, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        named = OSError(f"{path}: cannot be written: {reason}; {fix}choose another output path")
        named.errno = error.errno
        raise named from error


def write_video(frames: Frames, path: str | Path, fps: float, metadata: dict[str, Any]) -> Path:
    """Write a clip as its suffix says: .mp4 (H.264), .gif, .webp, or a folder of PNGs; `metadata` goes into it.

    Returns the file, or the folder of PNGs.

    Raises:
        ValueError: the frames, `fps` or the suffix are not such that can be written.
        OSError: the file system refused, in one line.
    """
    path = Path(path)
    stack = as_frames(frames)
    if not fps > 0:
        raise ValueError(f"fps={fps}: must be above 0")
    text = json.dumps(metadata)  # ASCII: every container carries that unchanged
    what = kind(path)
    with one_line_errors(path):
        if what == "png":
            return write_pngs(stack, frames_pattern(path), text)
        writers: dict[str, Callable[..., None]] = {".mp4": write_mp4, ".gif": write_gif, ".webp": write_webp}
        with atomic_path(path) as temporary:
            writers[what](stack, temporary, fps, text)
    return path


def as_frames(frames: Frames) -> npt.NDArray[np.uint8]:
    """The frames as one array [T, H, W, 3].

    Raises:
        ValueError: they are not uint8 RGB images of one size.
    """
    stack = np.asarray(frames)
    if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] != 3 or 0 in stack.shape:
        raise ValueError(f"frames of shape {stack.shape} and type {stack.dtype}: must be uint8 [T, H, W, 3]")
    return stack


def write_mp4(frames: npt.NDArray[np.uint8], path: Path, fps: float, text: str) -> None:
    """H.264, 4:2:0, BT.709, the index in front of the data: what browsers play while they load it."""
    import av

    even = np.pad(frames, [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)], mode="edge")
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = text
        stream = container.add_stream("libx264", rate=rate, options=x264_options())
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        for number, image in enumerate(even):
            rgb = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = rgb.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE, threads=1)
            frame.color_primaries = frame.color_trc = frame.colorspace = BT709
            frame.color_range = LIMITED_RANGE
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def x264_options() -> dict[str, str]:
    """How to encode such that the same frames give the same bytes every time."""
    options = {"crf": "17", "preset": "medium", "threads": "1"}
    if platform.machine().lower() in ("x86_64", "amd64"):
        # x264 with AVX-512 picks other B-frames now and then, for some clips in most runs; this is as fast.
        options["x264-params"] = "asm=SSE4.2"
    return options


def write_gif(frames: npt.NDArray[np.uint8], path: Path, fps: float, text: str) -> None:
    """Looping GIF, each frame with a palette of its own; the text is the file's comment."""
    from PIL import Image

    images = [Image.fromarray(frame).quantize(256, method=Image.Quantize.FASTOCTREE) for frame in frames]
    durations = durations_ms(len(frames), fps, unit=10)
    save_animation(images, path, format="GIF", duration=durations, comment=text.encode(), disposal=1)


def write_webp(frames: npt.NDArray[np.uint8], path: Path, fps: float, text: str) -> None:
    """Looping WebP; the text is the EXIF image description."""
    from PIL import Image

    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = text
    images = [Image.fromarray(frame) for frame in frames]
    durations = durations_ms(len(frames), fps, unit=1)
    save_animation(images, path, format="WEBP", duration=durations, exif=exif.tobytes(), quality=90)


def save_animation(images: "list[Image.Image]", path: Path, **options: Any) -> None:
    """Through an open file, as the temporary name has no suffix that means something."""
    with path.open("wb") as file:
        images[0].save(file, save_all=True, append_images=images[1:], loop=0, **options)


def durations_ms(count: int, fps: float, unit: int) -> list[int]:
    """How long each frame shows, in multiples of `unit` ms, such that no clip drifts from its length."""
    ends = [round(1000 * number / fps / unit) * unit for number in range(count + 1)]
    return [max(unit, after - before) for before, after in zip(ends, ends[1:], strict=False)]


def write_pngs(frames: npt.NDArray[np.uint8], pattern: Path, text: str) -> Path:
    """A folder of numbered PNGs, put in place as a whole; each carries the text."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    folder = pattern.parent
    check_replaceable(pattern)
    info = PngInfo()
    info.add_text(PNG_KEY, text)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(temporary / (pattern.name % number), pnginfo=info)
        if folder.exists():
            shutil.rmtree(folder)
    return folder


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `write_video` put into the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it carries nothing of ours.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    text = read_text(path)
    try:
        metadata = json.loads(text) if text else None
    except json.JSONDecodeError:
        metadata = None
    if not isinstance(metadata, dict) or "fastvideo" not in metadata:
        raise ValueError(f"{path}: carries no FastVideo metadata; only files that fastvideo wrote do")
    return metadata


def read_text(path: Path) -> str | None:
    """The metadata as the container holds it, or None where it holds none or is no such container."""
    import av
    from PIL import Image, UnidentifiedImageError

    if path.is_dir():
        pngs = sorted(path.glob("*.png"))
        return read_text(pngs[0]) if pngs else None
    if path.suffix.lower() in (".png", ".gif", ".webp"):
        try:
            with Image.open(path) as image:
                comment = image.info.get("comment", b"")
                plain = comment.decode("ascii", "replace") if isinstance(comment, bytes) else str(comment)
                return image.info.get(PNG_KEY) or plain or image.getexif().get(IMAGE_DESCRIPTION)
        except (UnidentifiedImageError, OSError):
            return None
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment")
    except av.error.FFmpegError:
        return None


def read_frames(path: str | Path) -> npt.NDArray[np.uint8]:
    """The frames [T, H, W, 3] of a file or a folder that `write_video` wrote."""
    import av
    from PIL import Image, ImageSequence

    path = Path(path)
    if path.is_dir():
        return np.stack([np.asarray(Image.open(png).convert("RGB")) for png in sorted(path.glob("*.png"))])
    if path.suffix.lower() in (".gif", ".webp"):
        with Image.open(path) as image:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    with av.open(str(path)) as container:
        decoded = container.decode(video=0)
        return np.stack([frame.to_ndarray(format="rgb24", src_colorspace=BT709) for frame in decoded])


def contact_sheet(frames: Frames, path: str | Path, columns: int | None = None, limit: int = 25) -> Path:
    """Up to `limit` frames, evenly over the clip, as one numbered PNG of `columns` columns (default: near a square).

    Raises:
        ValueError: the frames are not such that can be drawn.
        OSError: the file system refused, in one line.
    """
    from PIL import Image, ImageDraw

    stack, path = as_frames(frames), Path(path)
    count = min(len(stack), limit)
    chosen = [round(i * (len(stack) - 1) / max(1, count - 1)) for i in range(count)]
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows, gap, caption = math.ceil(count / columns), 4, 14
    height, width = stack.shape[1:3]
    cell_w, cell_h = width + gap, height + gap + caption
    sheet = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + gap), (32, 32, 32))
    draw = ImageDraw.Draw(sheet)
    for place, number in enumerate(chosen):
        x, y = gap + place % columns * cell_w, gap + place // columns * cell_h
        sheet.paste(Image.fromarray(stack[number]), (x, y))
        draw.text((x + 1, y + height + 1), str(number), fill=(220, 220, 220))
    with one_line_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            sheet.save(file, format="PNG")
    return path
