"""The process that measures: `python -m fastvideo.entrypoints.bench.worker REQUEST ANSWER`, two JSON files."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from fastvideo.entrypoints.bench.records import Settings
from fastvideo.platforms.cpu import keep_freed_memory

LEAN = 1 << 16
"""Bytes: larger blocks are given back to the system as soon as they are freed, where that was asked for."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What `request` asks for: "task" says which measurement, the rest are its arguments."""
    from fastvideo.entrypoints.bench import measure
    from fastvideo.entrypoints.bench.cases import find

    asked = request["settings"]
    task, settings = request["task"], Settings(**{**asked, "peers": tuple(asked["peers"])})
    if task == "machine":
        return machine(settings)
    place: tuple[str, Settings, Path] = request["case"], settings, Path(request["work"])
    if task == "time":
        return dataclasses.asdict(measure.measure_component(*place))
    if task == "peak":
        return dataclasses.asdict(measure.measure_peak(*place, request["peer"], int(request["times"])))
    if task == "write":
        return {"repo": str(measure.full_repo(find(request["case"]), settings, Path(request["work"])))}
    assert task == "load", task
    return dataclasses.asdict(measure.measure_load(*place, request["peer"]))


def machine(settings: Settings) -> dict[str, Any]:
    """The device, the threads of a process, and which peers can run here."""
    import torch

    from fastvideo.entrypoints.bench.peers import find_peers
    from fastvideo.platforms import current_platform

    platform = current_platform(settings.device)
    refused = {name: peer.why_not(platform.device_type) for name, peer in find_peers().items()}
    return {
        "device": platform.device_type,
        "device_name": platform.name(),
        "device_memory": platform.total_memory(),
        "host_memory": current_platform("cpu").total_memory(),
        "threads": torch.get_num_threads(),
        "refused": refused,
    }


def main(arguments: list[str]) -> None:
    """Read the request, write the answer."""
    request, file = json.loads(Path(arguments[0]).read_text()), Path(arguments[1])
    if "lean" in request:
        keep_freed_memory(at_most=LEAN)
    file.write_text(json.dumps(answer(request)))


if __name__ == "__main__":
    main(sys.argv[1:])
