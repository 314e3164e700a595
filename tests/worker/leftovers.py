"""What a program that started workers may have left behind: processes, ports, shared memory, open files."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

LISTENING = "0A"


@dataclass(frozen=True)
class Traces:
    """What there is of this process."""

    children: frozenset[int]
    ports: frozenset[str]
    shared_memory: frozenset[str]
    files: int

    @classmethod
    def now(cls) -> "Traces":
        """Those of this moment."""
        links = [_link(path) for path in Path("/proc/self/fd").iterdir()]
        return cls(children_of(os.getpid()), ports_of(links), frozenset(os.listdir("/dev/shm")), len(links))

    def added(self, seconds: float = 5.0) -> "list[str]":
        """What there is now beyond these; what others on the machine do may show for a moment, so it looks again."""
        until = time.monotonic() + seconds
        while True:
            now = Traces.now()
            kinds = ("children", "ports", "shared_memory")
            found = [f"{kind}: {sorted(new)}" for kind in kinds if (new := getattr(now, kind) - getattr(self, kind))]
            found += [f"{now.files - self.files} open files"] if now.files > self.files else []
            if not found or time.monotonic() > until:
                return found
            time.sleep(0.1)


def ports_of(links: list[str]) -> frozenset[str]:
    """The TCP ports that listen among open files."""
    sockets = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:")}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return frozenset(line[1] for line in lines if line[3] == LISTENING and line[9] in sockets)


def children_of(process: int) -> frozenset[int]:
    """The processes that `process` started and that are there, zombies too."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == process:
                found.add(int(folder.name))
    return frozenset(found)


def seconds_of(process: int) -> float:
    """Processor time that `process` has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def alive(process: int) -> bool:
    """Whether `process` is there; one that ended and that nobody waited for is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(processes: list[int], seconds: float) -> list[int]:
    """Those of `processes` that are there after so many seconds, or none as soon as there is none."""
    until = time.monotonic() + seconds
    while (left := [process for process in processes if alive(process)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
