"""What the model is shown and adapted with when a job runs, and what becomes of frames that continue a video."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastvideo.entrypoints.media import read_metadata, write_video
from fastvideo.entrypoints.serve.files import FileStore
from fastvideo.entrypoints.serve.intake import inputs_of
from fastvideo.entrypoints.serve.plan import EXTENDS, GOES_ON
from fastvideo.entrypoints.serve.records import Job
from fastvideo.entrypoints.serve.references import Look

if TYPE_CHECKING:
    from fastvideo.entrypoints.serve.protocols import Generator


class Loras:
    """The LoRAs of a model whose requests choose among them."""

    def __init__(self, generator: "Generator", offered: Mapping[str, str]) -> None:
        """Read all that are `offered`, by their names, and use none of them yet.

        Raises:
            ValueError: one is not there, is for another model, or does not go with the model's options.
        """
        self._generator = generator
        self._always = dict(generator.active_loras)
        for name, path in offered.items():
            generator.set_lora_adapter(name, path, 0.0, accumulate=True)

    def use(self, asked: list[dict[str, Any]]) -> None:
        """Have the model run with these, beside what the operator loaded it with, and with no others."""
        strengths = {lora["name"]: lora["strength"] for lora in asked}
        self._generator.use_lora_adapters({**self._always, **strengths})


def media_for(job: Job, files: FileStore, folder: Path) -> dict[str, Any]:
    """The media of a job as pixels, by the keywords of `generate_video`: no path of this machine gets into a file.

    Args:
        job: which says what it is made from.
        files: where that lies.
        folder: on this machine, for copies of what lies elsewhere.

    Raises:
        FileNotFoundError: a file is gone.
        ValueError: one cannot be read.
    """
    from fastvideo.entrypoints.media_inputs import read_image, read_video

    media: dict[str, Any] = {}
    for name, part in inputs_of(job).items():
        path = files.path(part["name"]) or files.fetched(part["name"], folder)
        if name == EXTENDS:
            look = Look(**part["look"])
            last = read_video(path, name, look.frames)[-look.repeated :].numpy()
            media |= {GOES_ON: last} if look.shown else {"image": last[0]}
        elif part["look"]["kind"] == "image":
            picture = read_image(path, name).numpy()
            media[name] = [picture] if name == "reference_images" else picture
        else:
            media[name] = read_video(path, name, job.sampling["num_frames"]).numpy()
    return media


@dataclass(frozen=True)
class Before:
    """The video that a result continues."""

    frames: npt.NDArray[np.uint8]
    """[T, H, W, 3], all of it."""
    repeated: int
    """How many frames of the result are the last ones of these again."""
    sha256: str


def before(job: Job, files: FileStore, folder: Path) -> Before | None:
    """The video that a job continues; None where it begins one. Takes and raises what `media_for` does."""
    part = inputs_of(job).get(EXTENDS)
    if part is None:
        return None
    from fastvideo.entrypoints.media_inputs import read_video

    look, path = Look(**part["look"]), files.path(part["name"]) or files.fetched(part["name"], folder)
    return Before(read_video(path, EXTENDS, look.frames).numpy(), look.repeated, part["sha256"])


def joined(job: Job, result: Any, files: FileStore, folder: Path) -> list[npt.NDArray[np.uint8]]:
    """The frames of a result; where it continues a video, those of the video and then the new ones, and its file too.

    The first frames of the result show what the last ones of the video do, so they are left out. All frames are encoded
    (again); the file says of itself that it was joined, as it cannot be made again from what it says.
    """
    video = before(job, files, folder)
    if video is None:
        return list(result.frames)
    frames = [*video.frames, *result.frames[video.repeated :]]
    file = Path(result.video_path)
    metadata = read_metadata(file) | {EXTENDS: {"frames": len(video.frames), "sha256": video.sha256}}
    write_video(frames, file, job.sampling["fps"], metadata)
    return frames
