"""The flags of `fastvideo serve`, `keys` and `router`, and the keys of their config filess. Quick to import."""

import typing
from typing import Any

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.serve.settings import RouterSettings, ServerSettings

DEFAULTS = (
    "height", "width", "num_frames", "fps", "num_inference_steps", "guidance_scale", "guidance_scale_2",
    "guidance_rescale", "seed",
)  # fmt: skip
"""Sampling parameters that an operator may set under `default_request.sampling`: none names a file."""
KEY_ACTIONS = ("add", "list", "revoke")


def serve_keys() -> dict[str, Any]:
    """The type of every key of a config file of `serve` that `generate` has not, by its dotted name."""
    hints, sampling = typing.get_type_hints(ServerSettings), typing.get_type_hints(SamplingParam)
    keys = {f"server.{name}": hints[name] for name in ServerSettings.field_names()}
    keys["default_request.negative_prompt"] = str
    return keys | {f"default_request.sampling.{name}": sampling[name] for name in DEFAULTS}


def router_keys() -> dict[str, Any]:
    """The type of every key of a config file of `router`, by its dotted name."""
    hints = typing.get_type_hints(RouterSettings)
    return {f"router.{name}": hints[name] for name in RouterSettings.field_names()}
