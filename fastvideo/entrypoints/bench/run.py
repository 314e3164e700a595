"""`fastvideo bench`: from the flags to tables and an exit code. No torch here: processes that end do the work."""

import dataclasses
import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fastvideo.entrypoints.bench.cases import select
from fastvideo.entrypoints.bench.page import page, tables
from fastvideo.entrypoints.bench.programs import Machine, ask, machine, measure_program
from fastvideo.entrypoints.bench.records import COMPILING, EAGER, OURS, Case, Result, Settings
from fastvideo.logger import init_logger
from fastvideo.utils import atomic_path, require

logger = init_logger(__name__)

PRECISIONS, DEVICES = ("bf16", "fp32"), ("auto", "cpu", "cuda")


def run(options: Namespace) -> int:
    """Measure, print the tables, write what was asked for; 1 when a case failed.

    Raises:
        ValueError: an option that cannot be, or the reference is not installed.
    """
    settings = settings_of(options)
    with tempfile.TemporaryDirectory(prefix="fastvideo-bench-") as folder:
        where = machine(settings, Path(folder))
        facts = ask(where, settings, task="machine")
        settings = with_peers(settings, facts, compiled=not options.no_compile)
        results = [measure(case, settings, where) for case in select(options.cases, settings)]
    print(tables(results, settings, facts))
    command = command_of(options)
    if options.output:
        write(Path(options.output), page(results, settings, facts, command))
    if options.json:
        found = {"command": command, "machine": facts, "settings": dataclasses.asdict(settings),
                 "results": [result.to_json() for result in results]}  # fmt: skip
        write(Path(options.json), json.dumps(found, indent=1))
    failed = [result.case for result in results if result.failures]
    if failed:
        logger.error("failed: %s", ", ".join(failed))
    return 1 if failed else 0


def settings_of(options: Namespace) -> Settings:
    """The settings that the flags ask for.

    Raises:
        ValueError: a value that cannot be.
    """
    require(options.rounds >= 1, "--rounds", options.rounds, "must be 1 or more")
    require(options.threads is None or options.threads >= 1, "--threads", options.threads, "must be 1 or more")
    require(options.precision in PRECISIONS, "--precision", options.precision, f"must be {' or '.join(PRECISIONS)}")
    require(options.device in DEVICES, "--device", options.device, f"must be one of {', '.join(DEVICES)}")
    require(not (options.tiny and options.full), "--full", True, "means nothing with --tiny", "leave one out")
    names = ("rounds", "precision", "device", "threads", "tiny", "full", "profile")
    settings = Settings(**{name: options[name] for name in names})
    # before anything runs: a name that is wrong, as far as that can be told without knowing the device
    device = "cuda" if settings.device == "auto" else settings.device
    check_profile(options, select(options.cases, dataclasses.replace(settings, device=device)))
    return settings


def check_profile(options: Namespace, cases: Sequence[Case]) -> None:
    """Check that `--profile` would write something; says of which of `cases` there is none.

    Raises:
        ValueError: there is none of any.
    """
    if options.profile is None:
        return
    without = [case.name for case in cases if not case.profiled]
    require(options.profile != "", "--profile", options.profile, "must be a folder", "leave it out to write none")
    require(len(without) < len(cases), "--profile", options.profile, f"there is no profile of {', '.join(without)}",
            "leave it out, or name a case of a component, such as dit-7800")  # fmt: skip
    if without:
        logger.info("no profile of %s: only components that are timed have one", ", ".join(without))


def command_of(options: Namespace) -> str:
    """The command line that measures the same; where things are written is left out."""
    words = ["fastvideo", "bench", *options.cases]
    for name, value in vars(options).items():
        if name not in ("cases", "output", "json", "profile") and value not in (None, False):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def with_peers(settings: Settings, facts: dict[str, Any], *, compiled: bool) -> Settings:
    """`settings` with the device and the peers of this machine.

    Raises:
        ValueError: the reference cannot run.
    """
    refused: dict[str, str | None] = facts["refused"]
    for name in (OURS, EAGER):
        if refused[name]:
            raise ValueError(f"{name}: {refused[name]}")
    peers = tuple(name for name, reason in refused.items() if reason is None and (compiled or name not in COMPILING))
    return dataclasses.replace(settings, device=facts["device"], peers=peers)


def measure(case: Case, settings: Settings, where: Machine) -> Result:
    """The result of one case; one that broke is a result that says so."""
    logger.info("bench: %s", case.name)
    try:
        if case.kind == "program":
            return measure_program(case, settings, where)
        if case.kind == "load":
            return measure_load(case, settings, where)
        settings = settings.of(case)
        if case.times is not None:
            return measure_growth(case, settings, where, case.times)
        result = Result(**ask(where, settings, task="time", case=case.name))
        for peer in settings.peers:
            merge_peaks(result, Result(**ask(where, settings, task="peak", case=case.name, peer=peer, times="1")))
        return result
    except ValueError as error:
        return Result(case=case.name, about=case.about, failures=[str(error)])


def measure_load(case: Case, settings: Settings, where: Machine) -> Result:
    """Ours and the reference, each time in a new process, in turn."""
    ask(where, settings, task="write", case=case.name)
    result = Result(case=case.name, about=case.about, seconds={OURS: [], EAGER: []})
    for number in range(settings.rounds):
        for peer in sorted(result.seconds, reverse=number % 2 == 0):
            found = Result(**ask(where, settings, task="load", case=case.name, peer=peer))
            result.seconds[peer] += found.seconds[peer]
            result.weights = found.weights
            merge_peaks(result, found)
    return result


def measure_growth(case: Case, settings: Settings, where: Machine, times: int) -> Result:
    """The peaks of ours with the case's clip, and with one of so many `times` the frames, each in a new process
    that gives freed memory back at once: what the usual allocator keeps of small blocks can grow with the clip."""
    result = Result(case=case.name, about=case.about)
    for factor in (1, times):
        found = Result(**ask(where, settings, task="peak", case=case.name, peer=OURS, times=str(factor), lean="yes"))
        result.weights = found.weights
        result.beyond += found.beyond
        merge_peaks(result, found)
    return result


def merge_peaks(result: Result, found: Result) -> None:
    """Put the peaks of `found` into `result`, where they are higher."""
    for there, new in ((result.host_peak, found.host_peak), (result.device_peak, found.device_peak)):
        for peer, value in new.items():
            there[peer] = max(value, there.get(peer, 0))


def write(file: Path, text: str) -> None:
    """Write `text` to `file`, whole or not at all."""
    with atomic_path(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    logger.info("wrote %s", file)
