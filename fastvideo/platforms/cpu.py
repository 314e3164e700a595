"""The host's processor."""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from fastvideo.platforms.base import Platform
from fastvideo.utils import processor

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CGROUP_STATS = (Path("/sys/fs/cgroup/memory.stat"), Path("/sys/fs/cgroup/memory/memory.stat"))
_CGROUP_USED = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))


class CPUPlatform(Platform):
    """Memory is the host's, or the control group's limit where that is less."""

    device_type = "cpu"

    def name(self) -> str:
        return processor()[0] or "CPU"

    def why_unavailable(self) -> str | None:
        return None

    def supported_precisions(self) -> tuple[str, ...]:
        return ("fp32", "bf16", "fp16")

    def total_memory(self) -> int:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = _first_number(_CGROUP_LIMITS)
        return total if limit is None else min(total, limit)

    def available_memory(self) -> int:
        available = _field(Path("/proc/meminfo"), "MemAvailable:", 1024)
        if available is None:
            return self.total_memory()
        limit, used = _first_number(_CGROUP_LIMITS), _first_number(_CGROUP_USED)
        if limit is None or used is None:
            return available
        # file pages that the kernel drops when memory is needed count as used there
        cached = next((size for path in _CGROUP_STATS if (size := _field(path, "inactive_file ")) is not None), 0)
        return max(0, min(available, limit - used + cached))

    def peak_memory(self) -> int:
        peak = process_memory("VmHWM")
        if peak is not None:
            return peak
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024

    def reset_peak_memory(self) -> None:
        """Linux can (it needs write access to `/proc/self/clear_refs`); elsewhere the peak is that of the process."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return

    def synchronize(self) -> None:
        return


def process_memory(field: str) -> int | None:
    """Bytes that a field of `/proc/self/status`, such as VmRSS, says of this process; None where there is none."""
    return _field(Path("/proc/self/status"), f"{field}:", 1024)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system; the C library may keep some of it for later."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def keep_freed_memory(at_most: int) -> None:
    """Have the C library give each freed block of more bytes than that back to the system at once, and keep smaller
    ones for later, from now on. By itself glibc soon keeps all of less than 32 MiB."""
    set_option = _glibc("mallopt")
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, at_most)
        set_option(_M_TRIM_THRESHOLD, 2 * at_most)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@cache
def _glibc(name: str) -> Any:
    """The C library's function of that name, where it is glibc's; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except AttributeError:  # another C library
        return None


def _field(path: Path, field: str, unit: int = 1) -> int | None:
    """The bytes in the line of file `path` that starts with `field`; None where there is no such file or line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(field)]
    return int(found[0]) * unit if found else None


def _first_number(paths: tuple[Path, ...]) -> int | None:
    """The number in the first of `paths` that holds one."""
    for path in paths:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None
