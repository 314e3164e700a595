"""What a request comes to: the plan of a job, and what is noted of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.serve.references import Reference
from fastvideo.utils import RuleError

NOT_STORED = ("output_path", "save_video", "return_frames")
"""Sampling parameters that are the server's own business."""
OF_FIELD = {"height": "size", "width": "size", "lora_path": "loras", "image": "input_reference",
            "reference_images": "input_reference", "last_image": "last_frame"}  # fmt: skip
"""The field of a request that a sampling parameter or a medium comes from, where the names differ."""
EXTENDS = "extends"
"""The name of an input that is the video to make longer, beside those of the model's media."""
GOES_ON = "start_video"
"""The medium of models that go on from several frames."""


@dataclass(frozen=True)
class Plan:
    """A request that the model can run."""

    prompt: str
    request: dict[str, Any]
    """What the client wrote."""
    sampling: dict[str, Any]
    """What it came to; "loras" is a part of it, where there are any, as a list of names and strengths."""
    priority: int
    inputs: Mapping[str, Reference] = field(default_factory=dict)
    """The images and videos that it is made from, by the names in `MEDIA`, and `EXTENDS`."""


def extended(inputs: Mapping[str, Reference]) -> dict[str, Any]:
    """What is noted of a video that is made longer: how many frames are before those of the model that are new, and how
    many of the model's are not."""
    look = inputs[EXTENDS].look if EXTENDS in inputs else None
    return {} if look is None else {"extends_frames": look.frames, "repeats_frames": look.repeated}


def field_of(
    error: ValueError, wrote: dict[str, Any], inputs: Mapping[str, Reference], aliases: Mapping[str, str] = OF_FIELD
) -> str | None:
    """The field of the request that `error` is about, of those that the client gave where several could be."""
    begins = re.match(r"(\w+)[=:]", str(error))
    name = error.name if isinstance(error, RuleError) else begins[1] if begins else None
    for alias, of in (("seconds", "num_frames"), ("quality", "num_inference_steps")):
        name = alias if name == of and alias in wrote else name
    if EXTENDS in inputs and name in ("height", "width", "image", GOES_ON):
        return "video"
    return None if name is None else aliases.get(name, name)


def stored(sampling: SamplingParam, loras: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The sampling parameters that make the result what it is, and the LoRAs if there are any."""
    kept = {name: value for name, value in sampling.to_dict().items() if name not in NOT_STORED}
    return kept | ({"loras": loras} if loras else {})
