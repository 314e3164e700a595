"""Devices: which there are, and facts about them."""

from fastvideo.platforms.base import DTYPES, Platform
from fastvideo.platforms.cpu import CPUPlatform
from fastvideo.platforms.cuda import CUDAPlatform
from fastvideo.platforms.mps import MPSPlatform

__all__ = ["DTYPES", "PLATFORMS", "Platform", "current_platform"]

PLATFORMS: tuple[Platform, ...] = (CUDAPlatform(), MPSPlatform(), CPUPlatform())
"""In the order in which "auto" tries them."""


def current_platform(device: str = "auto") -> Platform:
    """The platform called `device`, or for "auto" the first that is available.

    Raises:
        ValueError: no such device, or it cannot be used here; the message says why.
    """
    if device == "auto":
        return next(platform for platform in PLATFORMS if platform.why_unavailable() is None)
    by_type = {platform.device_type: platform for platform in PLATFORMS}
    if device not in by_type:
        raise ValueError(f"device={device!r}: must be one of auto, {', '.join(by_type)}")
    reason = by_type[device].why_unavailable()
    if reason is not None:
        raise ValueError(f"device={device!r}: {reason}")
    return by_type[device]
