"""`bench`: the formulas, the statistics, whole runs in sizes for tests, and what counts as a failure."""

import dataclasses
import json
import math
import re
import shlex
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastvideo.configs.sample import SamplingParam
from fastvideo.entrypoints.bench import measure, peers, wan, worker
from fastvideo.entrypoints.bench import run as run_module
from fastvideo.entrypoints.bench.bars import BARS, GROWTH, MEMORY, SECONDS, Bar, bar_row, bar_rows
from fastvideo.entrypoints.bench.cases import CASES, find, select
from fastvideo.entrypoints.bench.page import tables
from fastvideo.entrypoints.bench.programs import Machine, job, machine
from fastvideo.entrypoints.bench.records import (
    COMPILED,
    COMPILING,
    EAGER,
    OURS,
    OURS_COMPILED,
    Result,
    Settings,
    ratio_of_medians,
)
from fastvideo.entrypoints.bench.wan_cases import DIT_1_3B, VAE, decode_flops, dit_flops, encode_flops
from fastvideo.entrypoints.cli.main import main

TINY = Settings(tiny=True, rounds=2, peers=(OURS, EAGER))
FLAGS = ("--tiny", "--no-compile", "--rounds", "2", "--device", "cpu")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are functions: what is changed here holds in them, and nothing is imported anew."""

    def ask(where: Machine, settings: Settings, **request: str) -> dict[str, Any]:
        given = json.dumps({**request, "settings": dataclasses.asdict(settings), "work": str(where.work)})
        return json.loads(json.dumps(worker.answer(json.loads(given))))

    monkeypatch.setattr(run_module, "ask", ask)


# ---- Formulas and statistics ----


@pytest.mark.parametrize(
    ("tflop", "found"),
    [
        (283, dit_flops(DIT_1_3B, (21, 60, 104))),
        (275, decode_flops(VAE, (81, 480, 832))),
        (4.45, decode_flops(VAE, (5, 240, 416))),
        (2.67, encode_flops(VAE, (5, 240, 416))),
    ],
)
def test_work_that_is_known(tflop: float, found: float) -> None:
    assert found / 1e12 == pytest.approx(tflop, rel=0.02)


@pytest.mark.parametrize("name", ["dit-7800", "vae-decode-17x480x832", "vae-encode-17x480x832", "text-encoder-512"])
def test_work_is_what_the_reference_does(name: str, tmp_path: Path) -> None:
    case, settings = find(name), dataclasses.replace(TINY, precision="fp32")
    kind, size = wan.KINDS[case.kind], case.size(settings)
    repo, inputs = measure.component_repo(case, settings, tmp_path), measure.inputs_of(case, settings)
    run = peers.find_peers()[EAGER].load(repo, kind, "fp32", "cpu")
    # the counter knows no fused attention of the CPU
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(inputs)
    assert kind.flops(size.config, size.shape) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_ratio_of_medians() -> None:
    ratio = ratio_of_medians([2.0, 2.2, 1.8, 2.1, 9.0], [1.0, 1.1, 0.9, 1.0, 1.0])
    assert ratio.value == pytest.approx(2.1)
    assert 1.6 < ratio.low <= ratio.value <= ratio.high <= 9
    assert ratio == ratio_of_medians([2.0, 2.2, 1.8, 2.1, 9.0], [1.0, 1.1, 0.9, 1.0, 1.0])
    # what slows a whole round down, both alike, does not widen it
    steady = ratio_of_medians([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert (steady.low, steady.high) == (2, 2)


# ---- Bars ----


def test_bars_are_judged_by_what_was_measured() -> None:
    # eager takes 2 s for 6 TFLOP, which is 3 TFLOP/s of the 4 that the machine does at most
    result = Result(case="dit-7800", flops=6e12, matmul=[3.5e12, 4e12], seconds={OURS: [1.6], EAGER: [2.0]})
    found = [bar_row(Bar("dit-7800", EAGER, value), result)[1:] for value in (1.25, 1.3, 1.4)]
    assert found == [
        ("1.25 times eager", "1.25", "75%", "1.33", "met"),
        ("1.3 times eager", "1.25", "75%", "1.33", "not met"),
        ("1.4 times eager", "1.25", "75%", "1.33", "out of reach on this machine"),
    ]
    assert bar_row(Bar("dit-7800", COMPILED, 1.15), result)[-1] == "not measured"
    small = Result(case="load", seconds={OURS: [0.4]}, weights=100, host_peak={OURS: 111})
    assert bar_row(Bar("load", MEMORY, 1.1), small)[1:] == ("110% of the weights at most", "111%", "-", "-", "not met")
    assert bar_row(Bar("load", MEMORY, 1.1), Result(case="load"))[-1] == "not measured"
    assert [bar_row(Bar("help", SECONDS, value), small)[-1] for value in (0.4, 0.39)] == ["met", "not met"]
    longer = Result(case="vae-decode-longer", beyond=[100_000_000, 111_000_000])
    text = "110% of a short clip's at most"
    assert bar_row(Bar("", GROWTH, 1.1), longer)[1:] == (text, "111% (100 and 111 MB)", "-", "-", "not met")
    assert bar_row(Bar("", GROWTH, 1.11), longer)[-1] == "met"
    assert bar_row(Bar("", GROWTH, 1.1), Result(case="vae-decode-longer"))[-1] == "not measured"
    device = Result(case="dit-1.3b", seconds={OURS: [0.7], OURS_COMPILED: [0.5], EAGER: [0.8]})
    rows = bar_rows([device], Settings(device="cuda"))[1:]
    assert [row[1:3] for row in rows] == [("1.5 times eager", "1.60"), ("0.55 s at most", "0.500 s")]
    assert {row[-1] for row in rows} == {"met"}
    del device.seconds[OURS_COMPILED]
    assert {row[-1] for row in bar_rows([device], Settings(device="cuda"))[1:]} == {"not measured"}
    whole = Result(case="generate", seconds={OURS: [1.0], EAGER: [2.5]})
    assert bar_row(Bar("generate", EAGER, 3.0), whole)[2:] == ("2.50", "-", "-", "not met")


def test_bars_are_of_cases_on_a_cpu() -> None:
    assert {bar.case for bars in BARS.values() for bar in bars} <= {case.name for case in CASES}
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    words = shlex.split(re.findall(r"^BENCH \?= (.*)$", makefile, re.M)[0])
    assert {case.name for case in select(words[: words.index("--rounds")], TINY)} == {bar.case for bar in BARS["cpu"]}
    broken = Result(case="generate", seconds={OURS: [1.0], EAGER: [2.5]}, failures=["it broke"])
    fine = Result(case="help", seconds={OURS: [0.2], EAGER: [2.5]})
    real = dataclasses.replace(TINY, tiny=False)
    assert [row[0] for row in bar_rows([broken, fine], real)] == ["case", "`help`"]
    assert bar_rows([broken], real) == []
    for settings in ({"device": "cuda"}, {"precision": "fp32"}, {"tiny": True}):
        assert bar_rows([fine], dataclasses.replace(real, **settings)) == []  # type: ignore[arg-type]


def test_with_sizes_for_tests_no_bar_is_judged_and_the_page_says_why() -> None:
    facts = {"threads": 1, "device": "cpu", "refused": {}}
    fine = Result(case="help", about="help", seconds={OURS: [0.2], EAGER: [2.5]})
    assert "## Bars\n\nNone with `--tiny`: its sizes are for tests" in tables([fine], TINY, facts)
    assert "| met |" not in tables([fine], TINY, facts)
    assert "| met |" in tables([fine], dataclasses.replace(TINY, tiny=False), facts)


# ---- Which cases ----


def test_cases_are_picked_by_name_and_glob() -> None:
    assert [case.name for case in select(["vae-*-5x*", "import"], TINY)] == [
        "vae-decode-5x240x416", "vae-encode-5x240x416", "import",
    ]  # fmt: skip
    on_cpu = {case.name for case in select([], TINY)}
    assert {case.name for case in CASES} - on_cpu == {"dit-1.3b", "dit-14b", "vae-decode-81x480x832"}
    assert len(select([], Settings(device="cuda", full=True))) == len(CASES)
    assert [case.name for case in select(["dit-14b"], Settings(device="cuda"))] == ["dit-14b"]
    with pytest.raises(ValueError, match="runs on CUDA only"):
        select(["dit-14b"], TINY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae-decod"], "case='vae-decod': no such case; did you mean 'vae-decode-"),
        (["dit-3210"], "did you mean 'dit-3120'?"),
        (["--precision", "fp8"], "--precision='fp8': must be bf16 or fp32"),
        (["--rounds", "0"], "--rounds=0: must be 1 or more"),
        (["--tiny", "--full"], "means nothing with --tiny"),
        (["help", "load", "--profile", "x"], "--profile='x': there is no profile of help, load; leave it out, or name"),
        (["vae-decode-longer", "--profile", "x"], "there is no profile of vae-decode-longer"),
        (["dit-3120", "--profile", ""], "--profile='': must be a folder"),
        (["dit-14b", "--device", "cpu"], "runs on CUDA only"),
    ],
)
def test_wrong_usage_is_said_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "ask", None)
    assert main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err


# ---- Whole runs ----


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_components(precision: str, in_this_process: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [case.name for case in CASES if case.profiled and not case.cuda_only]
    if precision == "fp32":
        names = ["dit-3120", "vae-decode-5x240x416"]
    files = ("--output", str(tmp_path / "page.md"), "--json", str(tmp_path / "numbers.json"))
    assert main(["bench", *names, *FLAGS, "--precision", precision, *files]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert [result["case"] for result in numbers["results"]] == names
    for result in numbers["results"]:
        assert {name: len(seconds) for name, seconds in result["seconds"].items()} == {OURS: 2, EAGER: 2}
        assert (len(result["matmul"]), len(result["copy"])) == (2, 2)
        assert 0 < result["errors"][OURS] <= result["bound"]
        assert result["ratio"][EAGER]["value"] == result["median"][EAGER] / result["median"][OURS]
        assert result["flops_per_second"] > 0 < result["share_of_matmul"]
        assert set(result["host_peak"]) == {OURS, EAGER}
        assert result["failures"] == []
    printed, page = capsys.readouterr().out, (tmp_path / "page.md").read_text()
    assert printed.strip() in page
    assert all(f"| `{name}` |" in page for name in names)
    assert f"\nfastvideo bench {names[0]} " in page
    assert "None with `--tiny`" in page


def test_memory_of_a_longer_clip(
    in_this_process: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    flags = (*FLAGS, "--json", str(tmp_path / "numbers.json"))
    assert main(["bench", "vae-decode-longer", *flags]) == 0
    (result,) = json.loads((tmp_path / "numbers.json").read_text())["results"]
    assert len(result["beyond"]) == 2
    assert result["seconds"] == {}
    assert set(result["host_peak"]) == {OURS}
    # in the table of memory, and in no other
    assert capsys.readouterr().out.count("| `vae-decode-longer` |") == 1
    case = find("vae-decode-longer")
    frames = [measure.inputs_of(case, Settings(), times)["latents"].shape[2] for times in (1, 4)]
    assert case.described(Settings()).endswith(
        f"{1 + 4 * (frames[0] - 1)} and {1 + 4 * (frames[1] - 1)} frames of 128x128"
    )


@pytest.mark.slow
def test_memory_of_decoding_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    result = run_module.measure(find("vae-decode-longer"), Settings(threads=1), machine(Settings(), tmp_path))
    assert result.failures == []
    short, long = result.beyond
    assert 10**7 < long < 1.1 * short


@pytest.mark.slow
def test_compiled(in_this_process: None, tmp_path: Path) -> None:
    flags = ("--tiny", "--rounds", "1", "--device", "cpu", "--json", str(tmp_path / "numbers.json"))
    assert main(["bench", "text-encoder-512", "vae-encode-5x240x416", "dit-3120", *flags]) == 0
    for result in json.loads((tmp_path / "numbers.json").read_text())["results"]:
        compiled = [peer for peer in result["seconds"] if peer in COMPILING]
        assert compiled == ([OURS_COMPILED, COMPILED] if result["case"] == "dit-3120" else [COMPILED])
        for peer in compiled:
            assert result["errors"][peer] <= result["bound"]
            # once compiled it stays so
            assert result["compile_seconds"][peer] > 10 * result["median"][peer]


@pytest.mark.slow
def test_a_worker_is_a_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (*FLAGS, "--threads", "1", "--profile", str(tmp_path))
    assert main(["bench", "text-encoder-512", *flags]) == 0
    assert "bf16, 1 threads on cpu, 2 rounds" in capsys.readouterr().out
    for name in (OURS, EAGER):
        assert "aten::" in (tmp_path / f"text-encoder-512-{name}.txt").read_text()


def test_loading(in_this_process: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "load", *FLAGS, "--json", str(tmp_path / "numbers.json")]) == 0
    (result,) = json.loads((tmp_path / "numbers.json").read_text())["results"]
    assert {name: len(seconds) for name, seconds in result["seconds"].items()} == {OURS: 2, EAGER: 2}
    assert result["weights"] > 100_000


def test_the_repo_is_the_same_each_time(tmp_path: Path) -> None:
    case = find("dit-3120")
    first, second = (measure.component_repo(case, TINY, tmp_path / name) for name in ("a", "b"))
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()


def test_commands_of_the_whole_job() -> None:
    commands = job(TINY, Path("ours.mp4"), Path("theirs.mp4"))
    assert commands[OURS][3:] == (
        "generate", "a blue star bouncing on a pink background", "-o", "ours.mp4", "--steps=2",
        "--generator.device=cpu",
    )  # fmt: skip
    own = SamplingParam.from_pretrained("shapes-t2v")
    size = {f"--height={own.height}", f"--width={own.width}", f"--frames={own.num_frames}"}
    assert size | {"--steps=2", "--guidance=3.0"} < set(commands[EAGER])


def test_peak_of_a_program_is_its_own(tmp_path: Path) -> None:
    held = torch.ones(400_000_000, dtype=torch.uint8)
    seconds, peak = machine(TINY, tmp_path).launch(sys.executable, "-c", "import time; time.sleep(0.2)")
    assert 0.2 <= seconds < 10
    assert peak < held.numel() / 2
    with pytest.raises(ValueError, match="gave 1: ZeroDivisionError"):
        machine(TINY, tmp_path).launch(sys.executable, "-c", "1 / 0")


# ---- What fails ----


def test_an_output_that_differs_fails(
    in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = wan.KINDS["dit"]
    wrong = dataclasses.replace(kind, ours=lambda model, inputs: 1.02 * kind.ours(model, inputs))
    monkeypatch.setitem(wan.KINDS, "dit", wrong)
    assert main(["bench", "dit-3120", "text-encoder-512", *FLAGS]) == 1
    printed = capsys.readouterr().out
    assert "`dit-3120` failed: ours: error" in printed
    assert "`text-encoder-512` failed" not in printed


def outputs(frames: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What two peers gave in bf16, and the reference's first two frames in fp32."""
    draw = torch.Generator().manual_seed(0)
    exact = torch.randn(1, 3, frames, 8, 8, generator=draw)
    made = {name: exact + 0.01 * torch.randn(exact.shape, generator=draw) for name in (OURS, EAGER)}
    return made, exact[:, :, :2]


@pytest.mark.parametrize(
    ("frame", "amount", "fails"), [(0, 0.0, False), (0, 0.1, True), (3, 0.1, True), (0, math.nan, True)]
)
def test_frames_beyond_the_exact_ones_count_too(frame: int, amount: float, fails: bool) -> None:
    made, exact = outputs(frames=4)
    made[OURS][:, :, frame] += amount
    result = Result(case="any")
    measure.compare(made, exact, result)
    assert bool(result.failures) == fails


def test_another_shape_fails() -> None:
    made, exact = outputs(frames=4)
    made[OURS] = made[OURS][:, :, :, :4]
    result = Result(case="any")
    measure.compare(made, exact, result)
    assert result.failures


def test_a_process_that_dies_is_a_failure_of_its_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(where: Machine, settings: Settings, **request: str) -> dict[str, Any]:
        if request["task"] == "machine":
            return worker.machine(settings)
        if request["case"] == "dit-3120":
            raise ValueError("the process was stopped by signal 9")
        return {"case": request["case"], "seconds": {OURS: [1.0], EAGER: [2.0]}}

    monkeypatch.setattr(run_module, "ask", answer)
    assert main(["bench", "dit-3120", "text-encoder-512", *FLAGS]) == 1
    printed = capsys.readouterr().out
    assert "`dit-3120` failed: the process was stopped by signal 9" in printed
    assert "2.00 [2.00, 2.00]" in printed


# ---- Peers ----


class Copycat(peers.Ours):
    """A peer as a package may add it."""

    name = "copycat"


class Elsewhere(Copycat):
    """One that cannot run here."""

    name = "elsewhere"

    def why_not(self, device: str) -> str | None:
        return "needs another machine"


def test_peers_of_other_packages(
    in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "peers_of_a_package", sys.modules[__name__])
    points = [EntryPoint(name.lower(), f"peers_of_a_package:{name}", "fastvideo_bench")
              for name in ("Copycat", "Elsewhere")]  # fmt: skip
    monkeypatch.setattr(peers, "entry_points", lambda group: points if group == "fastvideo_bench" else [])
    assert main(["bench", "text-encoder-512", *FLAGS]) == 0
    printed = capsys.readouterr().out
    assert "against copycat" in printed
    assert "`elsewhere` was not run: needs another machine" in printed
    assert "elsewhere, s" not in printed
