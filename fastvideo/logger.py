"""Logging: one handler on standard error for the whole package."""

import logging

from fastvideo import envs


def init_logger(name: str) -> logging.Logger:
    """The logger called `name`, which must lie in the `fastvideo` package."""
    root = logging.getLogger("fastvideo")
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        root.addHandler(handler)
        root.setLevel(envs.logging_level())
        root.propagate = False
    return logging.getLogger(name)
