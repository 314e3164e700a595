"""Small tools that know nothing of video: lazy imports, checks whose errors say what to do, files that are whole."""

import difflib
import hashlib
import importlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PRODUCTS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Of a processor's flags, those that decide how fast matrix products are."""


def resolve(reference: str) -> Any:
    """What `reference`, "package.module:Name", names; the module is imported now.

    Raises:
        ValueError: the string has another form, or the module has no such name.
    """
    module_name, _, name = reference.partition(":")
    require(bool(module_name and name), "reference", reference, "must read 'package.module:Name'")
    module = importlib.import_module(module_name)
    try:
        return getattr(module, name)
    except AttributeError:
        raise ValueError(f"{reference}: {module_name} has no {name!r}") from None


class RuleError(ValueError):
    """A value that breaks a rule: `name=value: rule; fix`, in one line. `name` says whose value it is."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return RuleError, (self.name, str(self))


def require(ok: bool, name: str, value: object, rule: str, fix: str = "") -> None:
    """Raise unless `ok`.

    Raises:
        RuleError: `name=value: rule; fix`, in one line.
    """
    if not ok:
        raise RuleError(name, f"{name}={value!r}: {rule}" + (f"; {fix}" if fix else ""))


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The one of `choices` that a typist of `word` may have meant, or None when none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def require_known(given: Iterable[str], known: Collection[str], what: str) -> None:
    """Raise unless every name in `given` is among `known`.

    Args:
        given: the names that somebody used.
        known: the names that there are.
        what: what the names are, such as "keyword of from_pretrained".

    Raises:
        ValueError: it names the first unknown one and the nearest that there is.
    """
    for name in given:
        if name not in known:
            close = nearest(name, known)
            fix = f"did you mean {close!r}?" if close else f"known are {', '.join(sorted(known))}"
            raise ValueError(f"{name!r}: unknown {what}; {fix}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in JSON file `path`.

    Raises:
        ValueError: the file cannot be read, is not JSON, or holds something other than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download or write the file again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, must be a JSON object; download or write it again")
    return value


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path in the folder of `path` to write a file or a folder to, which becomes `path` when the block ends.

    After an exception of any kind, Ctrl-C included, nothing of it is left and what was at `path` before is untouched.
    The suffix is kept. A file replaces a file; a folder replaces nothing but an empty folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:100]}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of the bytes of file `path`, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def processor() -> tuple[str, tuple[str, ...]]:
    """The processor's name, and those of `PRODUCTS` that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    there = fields.get("flags", "").split()
    return fields.get("model name", platform.machine()), tuple(flag for flag in PRODUCTS if flag in there)
