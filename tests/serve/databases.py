"""A PostgreSQL server for the tests, from the binaries of this machine."""

import glob
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serve.stand_in import wait_until

USER = "postgres"


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`; None where there is none."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += [Path(path).parent for path in sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), reverse=True)]
    return folders[0] if folders else None


class Postgres:
    """A server in a folder, which can be stopped and started."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self._bin = bin_folder
        self._data = folder / "data"
        # PostgreSQL refuses to run as root
        self._user = USER if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, USER)
            for parent in folder.parents:
                if parent.stat().st_uid == 0 and parent.stat().st_mode & 0o1 == 0:
                    parent.chmod(parent.stat().st_mode | 0o11)
        self._run("initdb", "-D", str(self._data), "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8")
        with socket.create_server(("127.0.0.1", 0)) as unused:
            self.port = int(unused.getsockname()[1])
        self.url = f"postgresql://{USER}@127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run([self._bin / name, *arguments], user=self._user, check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = ["-c", "fsync=off", "-c", "unix_socket_directories=", "-c", f"port={self.port}", "-c",
                   "max_connections=150"]  # fmt: skip
        self.process = subprocess.Popen(
            [self._bin / "postgres", "-D", str(self._data), *options], user=self._user, cwd="/",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        ready = [str(self._bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        wait_until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0)

    def stop(self) -> None:
        """Stop at once: every connection breaks."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
            self.process = None

    def database(self, name: str) -> str:
        """The URL of a new, empty database."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, name)
        return f"{self.url}/{name}"


@contextmanager
def postgres(folder: Path, bin_folder: Path) -> Iterator[Postgres]:
    """A server for the block."""
    made = Postgres(folder, bin_folder)
    try:
        yield made
    finally:
        made.stop()
