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


class _NoPrompts(logging.Filter):
    """Keeps what text encoders say of a prompt, and not the prompt."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.split(".")[1:3] == ["models", "encoders"] and record.args:
            record.msg, record.args = "a prompt was too long and was cut (log_prompts shows it)", ()
        return True


def hide_prompts() -> None:
    """Let no text of a prompt into the log, in this process and in those that run a model for it."""
    for handler in logging.getLogger("fastvideo").handlers:
        handler.addFilter(_NoPrompts())


def prompts_hidden() -> bool:
    """Whether `hide_prompts` was called."""
    handlers = logging.getLogger("fastvideo").handlers
    return any(isinstance(one, _NoPrompts) for handler in handlers for one in handler.filters)
