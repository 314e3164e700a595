"""`verify`: passes where ours equals the reference, and fails where it does not."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.configs.registry import COMPONENTS
from fastvideo.entrypoints import verify as verify_module
from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.verify import CLIPS, PROBES, Clip, Row, fitting_clip, memory_of, verify
from fastvideo.models.loader import component_loader
from fastvideo.platforms.cpu import CPUPlatform

SMALL = Clip(32, 16, 5)
COMPARED = {
    (component, precision)
    for component in ("text encoder", "transformer", "vae encode", "vae decode")
    for precision in ("fp32", "bf16")
} | {("pipeline", "fp32")}


Change = Callable[[torch.nn.Module], object]


@pytest.fixture
def alter(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Change]], None]:
    """Has each model that the loader makes changed, by component; the reference does not use the loader."""

    def apply(changes: dict[str, Change]) -> None:
        original = component_loader.load_component

        def altered(source: Any, **options: Any) -> torch.nn.Module:
            model = original(source, **options)
            name = source.source.name if isinstance(source, component_loader.Blueprint) else source.name
            with torch.no_grad():
                changes.get(name, lambda model: None)(model)
            return model

        for module in (component_loader, verify_module):
            monkeypatch.setattr(module, "load_component", altered)

    return apply


def add(amount: float, *parameters: str) -> Change:
    """Adds `amount` to one number of each of `parameters`."""

    def change(model: torch.nn.Module) -> None:
        for parameter in parameters:
            model.get_parameter(parameter).view(-1)[-1].add_(amount)

    return change


def failed(rows: list[Row]) -> set[tuple[str, str]]:
    """The comparisons that did not pass."""
    return {(row.component, row.precision) for row in rows if not row.passed}


def test_an_official_folder_passes(official_repo: Path) -> None:
    rows = verify(official_repo, SMALL)
    assert {(row.component, row.precision) for row in rows} == COMPARED
    assert len(rows) == len(COMPARED)
    assert failed(rows) == set()
    # different code rounds differently: an error of nothing would be a comparison with itself
    assert all(row.error is not None and row.error > 0 for row in rows)


def test_one_number_that_differs_fails(wan_repo: Path, alter: Callable[[dict[str, Change]], None]) -> None:
    alter(
        {
            "text_encoder": add(0.01, "blocks.1.attn.out.weight"),
            "transformer": add(0.01, "blocks.2.cross_attn.kv.bias"),
            "vae": add(0.01, "encoder.down_blocks.3.conv1.bias", "decoder.conv_in.weight"),
        }
    )
    components = {row for row in failed(verify(wan_repo, SMALL)) if row[0] != "pipeline"}
    assert components == {row for row in COMPARED if row[0] != "pipeline" and row[1] == "fp32"}


def test_coarser_rounding_than_the_reference_fails(wan_repo: Path, alter: Callable[[dict[str, Change]], None]) -> None:
    def coarsen(model: torch.nn.Module) -> None:
        for parameter in model.parameters():
            if parameter.dtype == torch.bfloat16:
                parameter.copy_(parameter.to(torch.float8_e4m3fn).to(torch.bfloat16))

    alter(dict.fromkeys(("text_encoder", "transformer", "vae"), coarsen))
    assert failed(verify(wan_repo, SMALL)) == {row for row in COMPARED if row[1] == "bf16"}


def test_the_command_prints_a_table_and_fails_with_a_comparison(
    wan_repo: Path,
    alter: Callable[[dict[str, Change]], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(verify_module, "CLIPS", (SMALL,))
    assert main(["verify", str(wan_repo)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["component", "precision", "error", "bound", "result", "compared"]
    assert sum(" pass " in line for line in lines) == len(COMPARED) == len(lines) - 2
    alter({"transformer": lambda model: model.get_parameter("proj_out.weight").mul_(1.1)})
    assert main(["verify", str(wan_repo)]) == 1
    wrong = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if " FAIL " in line]
    assert wrong == [["transformer", "fp32"], ["transformer", "bf16"], ["pipeline", "fp32"]]


def test_what_memory_cannot_hold_has_not_passed(wan_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CPUPlatform, "available_memory", lambda self: 5_000_000)
    rows = verify(wan_repo)
    assert [(row.component, row.passed) for row in rows] == [
        ("text_encoder", False), ("transformer", False), ("vae", False), ("pipeline", False),
    ]  # fmt: skip
    assert rows[0].note == "not run: needs 0.1 GB of memory, 0.0 GB are free"


def test_the_clip_suits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CPUPlatform, "available_memory", lambda self: 10 * 10**9)
    assert fitting_clip(10**9) == CLIPS[0]
    assert fitting_clip(10 * 10**9 - memory_of(CLIPS[1])) == CLIPS[1]
    assert fitting_clip(10 * 10**9) == CLIPS[-1]


def test_a_missing_package_is_one_line(
    wan_repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(["verify", str(wan_repo)]) == 1
    assert capsys.readouterr().err == "fastvideo: verify needs accelerate: pip install 'fastvideo[verify]'\n"


def test_nothing_but_an_error_within_the_bound_passes() -> None:
    def row(error: float | None, bound: float | None = 1e-5) -> Row:
        return Row(component="vae", precision="fp32", error=error, bound=bound)

    assert row(1e-5).passed
    assert row(0.0).passed
    assert not row(1.1e-5).passed
    assert not row(float("nan")).passed
    assert not row(float("inf")).passed
    assert not row(None).passed
    assert not row(0.0, float("nan")).passed


def test_every_registered_class_is_compared() -> None:
    assert {entry.class_name for entry in COMPONENTS} == set(PROBES)


@pytest.mark.parametrize("kind", ["i2v", "flf2v", "wan22", "ti2v", "lucy", "vace"])
def test_repos_of_other_pipelines_pass(kind: str, request: pytest.FixtureRequest) -> None:
    rows = verify(request.getfixturevalue(f"{kind}_repo"), Clip(32, 64, 5))
    assert rows[-1].component == "pipeline"
    assert [row for row in rows if not row.passed] == []
