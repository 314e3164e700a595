"""The environment variables of FastVideo: the only file that reads the environment."""

import os
from pathlib import Path

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
NAMES = ("FASTVIDEO_ATTENTION_BACKEND", "FASTVIDEO_CACHE_ROOT", "FASTVIDEO_LOGGING_LEVEL")


def check_names() -> None:
    """Refuse a variable of ours that would do nothing.

    Raises:
        ValueError: `FASTVIDEO_...` is set and this version has no such variable; lists those that it has.
    """
    for name in sorted(os.environ):
        if name.startswith("FASTVIDEO_") and name not in NAMES:
            raise ValueError(f"{name}={os.environ[name]!r}: no such variable; unset it, there are {', '.join(NAMES)}")


def logging_level() -> str:
    """`FASTVIDEO_LOGGING_LEVEL`: one of DEBUG, INFO (default), WARNING, ERROR."""
    level = os.environ.get("FASTVIDEO_LOGGING_LEVEL", "INFO").upper()
    if level not in LOG_LEVELS:
        raise ValueError(f"FASTVIDEO_LOGGING_LEVEL={level!r}: must be one of {', '.join(LOG_LEVELS)}")
    return level


def attention_backend() -> str | None:
    """`FASTVIDEO_ATTENTION_BACKEND`: the name of an attention backend, or None when not set."""
    return os.environ.get("FASTVIDEO_ATTENTION_BACKEND") or None


def cache_root() -> Path:
    """`FASTVIDEO_CACHE_ROOT`: where FastVideo keeps its own files, `~/.cache/fastvideo` by default."""
    return Path(os.environ.get("FASTVIDEO_CACHE_ROOT") or "~/.cache/fastvideo").expanduser()
