"""Where the files of a LoRA are: a file, a folder, or a Hub repo."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastvideo.models.loader.checkpoint import PICKLED, TensorInfo, read_header, read_metadata
from fastvideo.models.loader.files import LocalFiles, RepoFiles, hub_files
from fastvideo.utils import read_json, require

SUFFIX = ".safetensors"
CONFIG = "adapter_config.json"
"""Where `peft` keeps what its weight file does not say."""
METADATA = "lora_adapter_metadata"
"""The same in the header of a file that `diffusers` wrote."""
MARKS = (("high", "high_noise", "transformer"), ("low", "low_noise", "transformer_2"))
"""What the file of a pair is called that is for the first transformer of a model, which starts from noise, and the one
for the second, which ends: a word in its name, or at the start of its folder's name, or that name."""


@dataclass(frozen=True)
class LoraFile:
    """One weight file of a LoRA."""

    files: RepoFiles
    name: str
    """Relative to `files`."""
    mark: int | None
    """Which of several transformers its name says that it is for, 0 or 1."""

    @property
    def path(self) -> Path:
        """On this machine; fetched now when it is not there yet."""
        return self.files.fetch((self.name,)) / self.name

    def header(self) -> dict[str, TensorInfo]:
        """Its tensors by name."""
        return read_header(self.path)

    def settings(self) -> dict[str, Any]:
        """What `peft` or `diffusers` noted about it: `lora_alpha`, `use_rslora` and the like; empty when they did not.

        Raises:
            ValueError: the note is no JSON object.
        """
        beside = str(PurePosixPath(self.name).with_name(CONFIG))
        if beside in self.files.names:
            return read_json(self.files.fetch((beside,)) / beside)
        text = read_metadata(self.path).get(METADATA)
        if text is None:
            return {}
        try:
            noted = json.loads(text)
        except ValueError:
            noted = None
        if not isinstance(noted, dict):
            raise ValueError(f"{self.path}: {METADATA} in its header must be a JSON object; save the file again")
        # diffusers puts the component's name before each key
        return {key.partition(".")[2] if re.match(r"transformer(_\d+)?\.", key) else key: value
                for key, value in noted.items()}  # fmt: skip


def find_lora(path: str, transformers: int = 1) -> tuple[LoraFile, ...]:
    """The weight files that `path` names.

    Args:
        path: a `.safetensors` file, a folder with one, a Hub repo with one, or a file of a Hub repo as in
            `owner/name/file.safetensors`. A folder or repo may hold one for each of two transformers, with
            `high_noise` and `low_noise` in their names.
        transformers: how many the model has.

    Raises:
        ValueError: there is no such file or repo, it is no `.safetensors`, or it is not clear which file is meant.
    """
    local = Path(path).expanduser()
    if local.is_file():
        pickled = " (a pickle may hold more than weights)" if local.suffix in PICKLED else ""
        require(local.suffix == SUFFIX, "lora_path", path, f"must be a {SUFFIX} file{pickled}",
                f"save its tensors as {SUFFIX}")  # fmt: skip
        local = Path(os.path.abspath(local))  # a link in the Hub's cache leads to a name without a suffix
        names = {local.name} | ({CONFIG} if (local.parent / CONFIG).is_file() else set())
        files = LocalFiles(local.parent, frozenset(names), hint="put it back")
        return (LoraFile(files, local.name, mark_of(str(local))),)
    if local.is_dir():
        return _choose(LocalFiles.of(Path(os.path.abspath(local))), path, transformers)
    parts = path.split("/")
    on_hub = len(parts) >= 2 and all(re.fullmatch(r"[\w.-]+", part) and part not in (".", "..") for part in parts)
    named_file = path.endswith(SUFFIX)
    require(on_hub and named_file == (len(parts) > 2), "lora_path", path, "there is no such file, folder or Hub repo",
            "give a .safetensors file, a folder with one, or a Hub id")  # fmt: skip
    hub = hub_files("/".join(parts[:2]), what="lora_path")
    if not named_file:
        return _choose(hub, path, transformers)
    name = "/".join(parts[2:])
    require(name in hub.names, "lora_path", path, f"the repo has no file {name!r}", f"it has {_listed(_there(hub))}")
    return (LoraFile(hub, name, mark_of(name)),)


def mark_of(name: str) -> int | None:
    """Which of two transformers the file `name`, with its folder, says that it is for; None for either."""
    path = PurePosixPath(name.lower())
    stem, folder = re.sub(r"[^a-z0-9]+", "_", path.stem), path.parent.name.replace("-", "_")
    for number, (word, start, whole) in enumerate(MARKS):
        other = MARKS[1 - number][0]
        if re.search(rf"(^|_){word}(noise)?(_|$)", stem) and not re.search(rf"(^|_){other}(noise)?(_|$)", stem):
            return number
        if folder == whole or folder.startswith(start):
            return number
    return None


def component_of(mark: int | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a model's transformers, by `names`, that a file with that mark is for."""
    return names if mark is None or len(names) == 1 else names[mark : mark + 1]


def _there(files: RepoFiles) -> list[str]:
    return sorted(name for name in files.names if name.endswith(SUFFIX))


def _choose(files: RepoFiles, path: str, transformers: int) -> tuple[LoraFile, ...]:
    there = _there(files)
    found = tuple(LoraFile(files, name, mark_of(name)) for name in there)
    if len(found) == 1:
        return found
    require(bool(found), "lora_path", path, f"holds no {SUFFIX} file", "give the file of a LoRA")
    if transformers == 2 and sorted(str(file.mark) for file in found) == ["0", "1"]:
        return found
    separator = "" if path.endswith("/") else "/"
    raise ValueError(
        f"lora_path={path!r}: holds {len(there)} {SUFFIX} files ({_listed(there)}), must hold one"
        + (" for each transformer" if transformers > 1 else "")
        + f"; name one, as in {path}{separator}{there[0]}"
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "none"


def alpha_of(settings: Mapping[str, Any], module: str) -> float | None:
    """`lora_alpha` of the layer that a file calls `module`, from its `settings`; None when they do not say."""
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(alpha)
    alpha = settings.get("lora_alpha")
    return None if alpha is None else float(alpha)
