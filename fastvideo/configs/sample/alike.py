"""Which requests can be made together. Importing this must stay quick: no torch."""

from collections.abc import Collection, Mapping
from typing import Any

from fastvideo.configs.sample.base import MEDIA

OWN = (
    "negative_prompt", "seed", "fps", "guidance_scale", "guidance_scale_2", "guidance_rescale", "output_path",
    "save_video", "return_frames", *MEDIA.values(),
)  # fmt: skip
"""Fields of `SamplingParam` in which they may differ: those that are used clip by clip."""


def alike(fields: Mapping[str, Any], media: Collection[str] = ()) -> tuple[Any, ...] | None:
    """What is equal for requests that can be made together: size, steps and all else that says which passes of the
    model they take; None for a request that is always made alone, as a step cache skips by what is in its clip.

    Args:
        fields: those of its `SamplingParam`.
        media: names in `MEDIA` of what it is made from.
    """
    if fields.get("cache", "none") != "none":
        return None
    shared = {name: value for name, value in fields.items() if name not in OWN}
    guided = fields.get("guidance_scale", 0) > 1
    return guided, tuple(sorted(media)), tuple((name, _frozen(value)) for name, value in sorted(shared.items()))


def _frozen(value: Any) -> Any:
    # JSON has lists where there were tuples
    return tuple(_frozen(one) for one in value) if isinstance(value, (list, tuple)) else value
