"""Sampling defaults by model: a view of the model registry."""

from pathlib import Path

from fastvideo.configs.registry import entry_for
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.utils import resolve


def sampling_param_for(model: str | Path) -> SamplingParam:
    """The defaults of `model`, a registered id or a local folder.

    Raises:
        ValueError: nothing is registered for it; the message lists what is.
    """
    param: SamplingParam = resolve(entry_for(model).sampling)()
    return param
