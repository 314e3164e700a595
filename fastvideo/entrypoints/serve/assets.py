"""The pictures beside a video: a thumbnail, and a sheet of its frames; and small previews as data URLs."""

import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastvideo.entrypoints.media import Frames, as_frames

THUMBNAIL_SIDE = 512
SHEET_COLUMNS, SHEET_ROWS, SHEET_CELL = 4, 4, 256
PREVIEW_SIDE = 256


def write_thumbnail(frames: Frames, path: Path) -> None:
    """The middle frame as a WebP of at most 512 pixels a side."""
    stack = as_frames(frames)
    image = Image.fromarray(stack[len(stack) // 2])
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    image.save(path, format="WEBP", quality=85)


def write_spritesheet(frames: Frames, path: Path) -> None:
    """Up to 16 frames, evenly over the clip, row by row in 4 columns, as a JPEG."""
    stack = as_frames(frames)
    count = min(len(stack), SHEET_COLUMNS * SHEET_ROWS)
    images = [Image.fromarray(stack[round(i * (len(stack) - 1) / max(1, count - 1))]) for i in range(count)]
    for image in images:
        image.thumbnail((SHEET_CELL, SHEET_CELL))
    width, height = images[0].size
    columns = min(count, SHEET_COLUMNS)
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * height))
    for place, image in enumerate(images):
        sheet.paste(image, (place % columns * width, place // columns * height))
    sheet.save(path, format="JPEG", quality=85)


def data_url(picture: npt.NDArray[np.uint8]) -> str:
    """A picture [H, W, 3] as the URL of a JPEG of at most 256 pixels a side."""
    image = Image.fromarray(picture)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
