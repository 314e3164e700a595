"""The environment variables of FastVideo: the only file that reads the environment."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
NAMES = (
    "FASTVIDEO_ATTENTION_BACKEND", "FASTVIDEO_CACHE_ROOT", "FASTVIDEO_CFG_GATE_STEP", "FASTVIDEO_LOGGING_LEVEL",
)  # fmt: skip


def check_names() -> None:
    """Refuse a variable of ours that would do nothing, and a value that means nothing.

    Raises:
        ValueError: `FASTVIDEO_...` is set and this version has no such variable; lists those that it has;
            or a bad value.
    """
    for name in sorted(os.environ):
        if name.startswith("FASTVIDEO_") and name not in NAMES:
            raise ValueError(f"{name}={os.environ[name]!r}: no such variable; unset it, there are {', '.join(NAMES)}")
    cfg_gate_step()


def logging_level() -> str:
    """`FASTVIDEO_LOGGING_LEVEL`: one of DEBUG, INFO (default), WARNING, ERROR."""
    level = os.environ.get("FASTVIDEO_LOGGING_LEVEL", "INFO").upper()
    if level not in LOG_LEVELS:
        raise ValueError(f"FASTVIDEO_LOGGING_LEVEL={level!r}: must be one of {', '.join(LOG_LEVELS)}")
    return level


def attention_backend() -> str | None:
    """`FASTVIDEO_ATTENTION_BACKEND`: the name of an attention backend, or None when not set."""
    return os.environ.get("FASTVIDEO_ATTENTION_BACKEND") or None


def cfg_gate_step() -> float | None:
    """`FASTVIDEO_CFG_GATE_STEP`: the `cfg_gate_step` of requests that do not say, from 0 to 1; None when not set."""
    text = os.environ.get("FASTVIDEO_CFG_GATE_STEP")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"FASTVIDEO_CFG_GATE_STEP={text!r}: must be a number from 0 to 1; 1 turns it off")
    return value


def cache_root() -> Path:
    """`FASTVIDEO_CACHE_ROOT`: where FastVideo keeps its own files, `~/.cache/fastvideo` by default."""
    return Path(os.environ.get("FASTVIDEO_CACHE_ROOT") or "~/.cache/fastvideo").expanduser()


def keep_compiled_code(own: str) -> None:
    """Let the compiler keep its code in our cache folder, unless the user said where. Its `own`, which is emptied at
    reboot, counts as not said: importing the compiler, as other libraries do, puts it into the environment."""
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, "", own):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_root() / "compiled")


@dataclass(frozen=True)
class Launched:
    """What `torchrun` says of a process that it started."""

    rank: int
    local_rank: int
    """Its number on this host."""
    world_size: int


def torchrun() -> Launched | None:
    """What `torchrun` says of this process; None when something else started it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return Launched(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


def own_variables() -> dict[str, str]:
    """Those of `NAMES` that are set, for processes that do not inherit them."""
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def omp_num_threads_is_set() -> bool:
    """Whether the user chose the threads of every process, with `OMP_NUM_THREADS`."""
    return "OMP_NUM_THREADS" in os.environ


def worker_environment() -> dict[str, str]:
    """The environment of processes that talk to each other on this machine alone: gloo listens on the loopback."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    return dict(os.environ) if loopback is None else {"GLOO_SOCKET_IFNAME": loopback, **os.environ}
