"""`fastvideo plan`: its flags, and what it says when nothing fits."""

import dataclasses
import re
from typing import Any

import pytest

from fastvideo import PipelineConfig
from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.planning import choose as choosing
from fastvideo.entrypoints.planning.choose import nearest_way
from fastvideo.entrypoints.planning.forecast import StageForecast
from fastvideo.entrypoints.quality import Loaded
from tests.entrypoints.test_planning import COSTS, GB


def test_the_memory_that_is_short_is_named() -> None:
    def way(device: int, host: int, **options: Any) -> choosing.Way:
        stage = StageForecast(name="any", device=device, host=host, seconds=None)
        return choosing.Way(options=options, config=PipelineConfig(), stages=[stage], fits=False)

    host = way(GB, 9 * GB)
    assert (
        nearest_way([host], False, 4 * GB, 8 * GB) == "as it is needs 9.00 GB of host memory, of which there are 8.00"
    )
    device = way(5 * GB, 3 * GB, disk_offload=True)
    assert nearest_way([host, device], False, 4 * GB, 4 * GB) == (
        "disk_offload=True needs 5.00 GB of GPU memory, of which there are 4.00"
    )
    words = nearest_way([way(5 * GB, 9 * GB)], False, 4 * GB, 8 * GB)
    assert words.endswith("of host memory, of which there are 8.00, and 5.00 GB of GPU memory, of which there are 4.00")
    assert nearest_way([host], True, GB, 8 * GB) == "as it is needs 9.00 GB of memory, of which there are 8.00"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-gpus", "4", "--ram", "16"), "--num-gpus=4: does not go with any of --gpu-memory, --ram, --quality"),
        (("--num-gpus", "2", "--quality", "fast"), "--num-gpus=2: does not go with any of --gpu-memory, --ram"),
        (("--tp-size", "2", "--ram", "16"), "--tp-size=2: is for several devices; leave it out"),
        (("--ram", "2", "--fsdp"), "--fsdp=True: is for several devices; leave it out, or give --num-gpus"),
        (("--num-gpus", "1", "--fsdp"), "--fsdp=True: is for several devices"),
        (("--ram", "2", "--memory", "4"), "--memory=4.0: is for several devices"),
        (("--memory", "0"), "--memory=0.0: must be a number of GB above 0; such as 16, or leave it out"),
        (("--ram", "0"), "--ram=0.0: must be a number of GB above 0"),
        (("--ram=-1",), "--ram=-1.0: must be a number of GB above 0"),
        (("--gpu-memory=-16",), "--gpu-memory=-16.0: must be a number of GB above 0"),
        (("--num-gpus", "0"), "--num-gpus=0: must be at least 1"),
        (("--quality", "best"), "--quality='best': must be one of exact, high, fast"),
        (("--quality", "best", "--ram", "16"), "--quality='best': must be one of exact, high, fast"),
        (("--size", "96x96"), "--size='96x96': is for one device; give --gpu-memory or --ram"),
        (("--ram", "16", "--size", "96"), "--size='96': must be WIDTHxHEIGHT; such as 832x480"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "shapes-t2v", *flags]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "much"])
def test_memory_is_a_number(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "shapes-t2v", "--memory", value]) == 2
    assert f"--memory={value}: must be a number" in capsys.readouterr().err


def test_a_quality_is_planned_for_as_documented(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(choosing, "costs_of", lambda *_, **__: (0, COSTS))
    monkeypatch.setattr("fastvideo.entrypoints.quality.loaded_for", lambda repo, args, config, _: (
        asked.append(args.quality) or dataclasses.replace(args, precision="bf16"), config, Loaded("fast")
    ))  # fmt: skip
    assert main(["plan", "shapes-t2v", "--quality", "fast"]) == 0
    assert asked == ["fast"]
    assert "as it is" in capsys.readouterr().out
    # without a level to look up, weights need not be here
    assert main(["plan", "shapes-t2v", "--quality", "exact"]) == 0
    assert asked == ["fast"]
    monkeypatch.setattr(choosing, "ON_CPU", ({},))
    assert main(["plan", "shapes-t2v", "--ram", "1e-3"]) == 1
    assert re.search(
        r"nothing fits: .* needs [\d.]+ GB of memory, of which there are 0\.00; use a", capsys.readouterr().out
    )
